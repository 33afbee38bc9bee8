// onnxruntime-web's `run` takes only inputs that have no default. Here a default is taken from a model's inputs, in place:
// the initializer of that name gets another name, and is then one that nothing reads.
const [GRAPH, INITIALIZER, NAME] = [7, 5, 8]; // fields of ModelProto, GraphProto and TensorProto
const MARK = "_".charCodeAt(0); // in place of a name's last letter

/** Make inputs of the ONNX model in `bytes` required. */
export function require(bytes, names) {
  const left = new Set(names);
  for (const graph of fields(bytes, 0, bytes.length, GRAPH)) {
    for (const initializer of fields(bytes, ...graph, INITIALIZER)) {
      for (const [start, end] of fields(bytes, ...initializer, NAME)) {
        if (left.delete(new TextDecoder().decode(bytes.subarray(start, end)))) bytes[end - 1] = MARK;
      }
    }
  }
  if (left.size) throw new Error(`the model has no input with a default named ${[...left].join(" or ")}`);
}

/** Where the contents of one field lie in a protobuf message, `[start, end]`, as often as it is there. */
function* fields(bytes, start, end, wanted) {
  let at = start;
  const varint = () => {
    for (let [value, scale] = [0, 1]; ; scale *= 128) {
      value += (bytes[at] & 127) * scale;
      if (bytes[at++] < 128) return value;
    }
  };
  while (at < end) {
    const tag = varint();
    const [field, kind] = [Math.floor(tag / 8), tag % 8];
    const size = kind === 2 ? varint() : { 1: 8, 5: 4 }[kind]; // by its length, of 64 or 32 bits
    if (kind === 0) varint();
    else if (!size && kind !== 2) throw new Error("the model is no protobuf message");
    else {
      if (field === wanted) yield [at, at + size];
      at += size;
    }
  }
}
