// transformers.js under Node. Job: { folder, chats: [[message]], newTokens } → { version, chats: [{ prompt, reply }] }.
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";
import { finish, job } from "./job.mjs";
import { talk } from "./pages/talk.mjs";

env.allowRemoteModels = false;
env.localModelPath = "/";
const load = { device: "cpu" };
const tokenizer = await AutoTokenizer.from_pretrained(job.folder);
const model = await AutoModelForCausalLM.from_pretrained(job.folder, load);
finish({ version: env.version, chats: await talk(tokenizer, model, job) });
