// Drafts as the page makes them while a text is said. Job: { text, most } → each draft, empty ones too.
import { Drafts } from "../../lfm2_export/bundle/page/drafts.js";
import { finish, job } from "./job.mjs";

const { text, most } = job;
const [drafts, found] = [new Drafts(), []];
for (let at = 1; at < text.length; ) {
  const draft = drafts.propose(text.slice(0, at), Math.min(most, text.length - at));
  let right = 0;
  while (right < draft.length && draft[right] === text[at + right]) right += 1;
  if (draft.length) drafts.judged(draft.length, right);
  found.push(draft);
  at += right + 1;
}
finish(found);
