// Explains a photo with a packed explainer: node explain.mjs node|web EXPLAINER PIXELS HEIGHT WIDTH TARGET MAP [TURNS]
// PIXELS is uint8 [height,width,3]; MAP gets float32 [1,height,width]. Prints JSON.
// TARGET is a class index; for a detector, with the box: INDEX@LEFT,TOP,RIGHT,BOTTOM.
import { readFile, writeFile } from "node:fs/promises";

const [kind, explainer, photo, height, width, target, output, turns = "1"] = process.argv.slice(2);
const [index, box] = target.split("@");
const ort = (await import(kind === "node" ? "onnxruntime-node" : "onnxruntime-web")).default;
if (kind === "web") ort.env.wasm.numThreads = 1;

const begin = performance.now();
const session = await ort.InferenceSession.create(kind === "web" ? await readFile(explainer) : explainer);
const loaded = performance.now();
const pixels = new Uint8Array(await readFile(photo));
const seconds = [];
let made;
for (let turn = 0; turn < Number(turns); turn++) {
  const start = performance.now();
  made = await session.run({
    image: new ort.Tensor("uint8", pixels, [Number(height), Number(width), 3]),
    target: new ort.Tensor("int64", BigInt64Array.from([BigInt(index)]), [1]),
    ...(box && { box: new ort.Tensor("float32", Float32Array.from(box.split(",").map(Number)), [1, 4]) }),
  });
  seconds.push((performance.now() - start) / 1000);
}
const map = made.saliency.data;
await writeFile(output, new Uint8Array(map.buffer, map.byteOffset, map.byteLength));
console.log(JSON.stringify({
  target: Number(made.target_class.data[0]),
  scored: Number(made.scored.data[0]),
  error: Array.from(made.error.data),
  scores: Array.from(made[session.outputNames[0]].data),
  seconds,
  loading: (loaded - begin) / 1000,
  version: ort.env.versions?.[kind] ?? ort.env.versions?.common,
}));
