// The detector's network on ONNX Runtime: one picture in, what collect/detector.py reads out.

import { IN_HEIGHT, IN_WIDTH, type Network, type Raw } from "../core/detector.ts";

/** What of onnxruntime-web is used. */
export interface Runtime {
  env: { wasm: { numThreads?: number; wasmPaths?: string; wasmBinary?: ArrayBuffer } };
  Tensor: new (type: "float32", data: Float32Array, shape: readonly number[]) => unknown;
  InferenceSession: {
    create(model: Uint8Array, options: { executionProviders: string[] }): Promise<{
      inputNames: readonly string[];
      run(feeds: Record<string, never>): Promise<Record<string, { data: unknown }>>;
    }>;
  };
}

/** Opens a model of our detector's form, on one thread. */
export async function networkOf(ort: Runtime, model: Uint8Array): Promise<Network> {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const name = session.inputNames[0];
  return async (picture) => {
    const tensor = new ort.Tensor("float32", picture, [1, 3, IN_HEIGHT, IN_WIDTH]);
    const out = await session.run({ [name]: tensor as never });
    const read = (key: string): Float32Array => out[key].data as Float32Array;
    return { boxes: read("boxes"), scores: read("scores"), sides: read("sides"), contacts: read("contacts") } satisfies Raw;
  };
}
