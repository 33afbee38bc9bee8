// Messages to token ids and back, by the artifact's own tokenizer and chat template.
import { withPictures } from "./pictures.js";
import { Template } from "./runtime/jinja.mjs";
import { Tokenizer } from "./runtime/tokenizers.mjs";

const SPECIAL = ["bos_token", "eos_token", "pad_token", "unk_token"];

export class Text {
  #tokenizer;
  #template;
  #special;

  constructor(tokenizer, settings) {
    this.#tokenizer = new Tokenizer(tokenizer, settings);
    this.#template = new Template(settings.chat_template);
    this.#special = Object.fromEntries(SPECIAL.map((name) => [name, settings[name]?.content ?? settings[name] ?? ""]));
  }

  /**
   * The token ids of a conversation, up to where the assistant's next turn begins; `pictures` are the texts that take the
   * places of those in it.
   */
  prompt(messages, pictures = null) {
    const rendered = this.#template.render({ messages, tools: null, add_generation_prompt: true, ...this.#special });
    const text = pictures ? withPictures(rendered, pictures) : rendered;
    return this.#tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** The text of token ids; a character whose bytes are not all there yet is left out. */
  decode(ids) {
    return this.#tokenizer.decode(ids, { skip_special_tokens: false }).replace(/\uFFFD+$/, "");
  }
}
