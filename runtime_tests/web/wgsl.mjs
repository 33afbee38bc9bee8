// Compute shaders in headless Chromium on its software GPU. Job: { shaders: { name: WGSL }, words } → { name: [numbers] }.
// Each writes `words` f32 to the storage buffer at group 0, binding 0.
import { launch, openPage, WEBGPU } from "./chromium.mjs";
import { finish, job } from "./job.mjs";
import { serve } from "./serve.mjs";

const server = await serve({ "/": "pages" });
const browser = await launch(WEBGPU);
const { page, complaints } = await openPage(browser, `${server.url}/empty.html`);
const result = await page.evaluate(async ({ shaders, words }) => {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const found = { subgroups: [adapter.info.subgroupMinSize, adapter.info.subgroupMaxSize], adapter: `${adapter.info.vendor} ${adapter.info.architecture} ${adapter.info.description}` };
  for (const [name, code] of Object.entries(shaders)) {
    const usage = GPUBufferUsage;
    const output = device.createBuffer({ size: 4 * words, usage: usage.STORAGE | usage.COPY_SRC });
    const read = device.createBuffer({ size: 4 * words, usage: usage.MAP_READ | usage.COPY_DST });
    const module = device.createShaderModule({ code });
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
    const entries = [{ binding: 0, resource: { buffer: output } }];
    const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(1);
    pass.end();
    encoder.copyBufferToBuffer(output, 0, read, 0, 4 * words);
    device.queue.submit([encoder.finish()]);
    await read.mapAsync(GPUMapMode.READ);
    found[name] = [...new Float32Array(read.getMappedRange())];
  }
  return found;
}, job);
const version = await browser.version();
await browser.close();
server.close();
finish({ ...result, version, complaints });
