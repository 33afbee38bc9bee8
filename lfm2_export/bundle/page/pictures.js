// Pictures to what the image part takes, by transformers.js's own processor for LFM2-VL.
const PLACE = "<image>"; // in a rendered prompt, and the text of each of a picture's tokens
const ROOM = 2; // times the most that the processor makes of a side: it resizes without a filter, the browser with one

export class Pictures {
  #processor;
  #RawImage;

  /** `ort` is onnxruntime-web, loaded; `settings` the checkpoint's own for its image processor. */
  static async load(ort, settings) {
    globalThis[Symbol.for("onnxruntime")] = ort; // where transformers.js looks for it
    ort.env.wasm.wasmPaths ??= new URL("./runtime/", import.meta.url).href; // or it would name a CDN
    const { Lfm2VlImageProcessor, Lfm2VlProcessor, RawImage } = await import("./runtime/transformers.mjs");
    const image_processor = new Lfm2VlImageProcessor({ ...settings, do_resize: false, do_pad: false }); // it does both itself
    const tokenizer = (text) => ({ text }); // the page has its own
    return new Pictures(new Lfm2VlProcessor({}, { image_processor, tokenizer }, null), RawImage);
  }

  constructor(processor, RawImage) {
    this.#processor = processor;
    this.#RawImage = RawImage;
  }

  /** What takes the place of the picture in the prompt, and its tiles: `{ text, tiles: [{ patches, rows, columns }] }`. */
  async prepare(blob) {
    const { text, pixel_values, spatial_shapes } = await this.#processor(await this.#opened(blob), PLACE);
    const [, room, values] = pixel_values.dims;
    const shapes = spatial_shapes.tolist();
    const tiles = shapes.map((shape, tile) => {
      const [rows, columns] = shape.map(Number);
      const start = tile * room * values;
      return { patches: pixel_values.data.slice(start, start + rows * columns * values), rows, columns };
    });
    return { text: text[0], tiles };
  }

  /** The picture as it is seen: upright, and on white where it is transparent. */
  async #opened(blob) {
    const whole = await createImageBitmap(blob).catch(() => {
      throw new Error("This is no picture that the browser can open.");
    });
    const shrunk = Math.min(1, ROOM * Math.sqrt(this.#most() / (whole.width * whole.height)));
    const [width, height] = [whole.width, whole.height].map((side) => Math.max(1, Math.round(side * shrunk)));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(whole, 0, 0, width, height);
    whole.close();
    return this.#RawImage.fromCanvas(canvas);
  }

  /** The most pixels that the processor makes of a picture. */
  #most() {
    const { do_image_splitting, max_tiles, tile_size, max_image_tokens, encoder_patch_size, downsample_factor } =
      this.#processor.image_processor;
    return do_image_splitting ? max_tiles * tile_size ** 2 : max_image_tokens * (encoder_patch_size * downsample_factor) ** 2;
  }
}

/** A rendered prompt with the pictures' texts in their places. */
export function withPictures(prompt, texts) {
  const parts = prompt.split(PLACE);
  if (parts.length - 1 !== texts.length) throw new Error(`The prompt has ${parts.length - 1} places for ${texts.length} pictures.`);
  return parts.map((part, at) => part + (texts[at] ?? "")).join("");
}
