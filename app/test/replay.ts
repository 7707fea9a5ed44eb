// Plays a stream of raw frames through the agent, for the test that compares it with the agent in Python.
// In: a folder with stream.json and frames.rgb. Out, on stdout: every look and every clip.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { type Clip, EdgeAgent } from "../src/core/agent.ts";
import { OwnDetector } from "../src/core/detector.ts";
import type { Sample } from "../src/core/imu.ts";
import { type Policy, POLICY } from "../src/core/policy.ts";
import { networkOf, type Runtime } from "../src/device/network.ts";

interface Stream {
  width: number; height: number; fps: number; times: number[];
  imu: { t: number; sample: Sample }[]; model: string; runtime: string;
  trigger: Policy["trigger"]; rates: Policy["rates"];
}

const folder = process.argv[2];
const stream = JSON.parse(readFileSync(join(folder, "stream.json"), "utf8")) as Stream;
const frames = readFileSync(join(folder, "frames.rgb"));
const ort = (await import(pathToFileURL(stream.runtime).href)) as Runtime;
const network = await networkOf(ort, new Uint8Array(readFileSync(stream.model)));
const looks: unknown[] = [], clips: unknown[] = [];
const ring = { push: async () => {}, dropBefore: () => {}, dropAll: () => {} };
const policy = { ...POLICY, trigger: stream.trigger, rates: stream.rates };
const keep = async ({ span }: Clip): Promise<void> => { clips.push([span.begin, span.end]); };
const agent = new EdgeAgent(stream.fps, new OwnDetector(network), ring, keep, policy);
agent.tick(0, 0);
const size = stream.width * stream.height * 3;
let at = 0, before = agent.lookAt;
for (let number = 0; number < stream.times.length; number++) {
  const t = stream.times[number];
  while (at < stream.imu.length && stream.imu[at].t <= t) agent.pushImu(stream.imu[at].t, stream.imu[at++].sample);
  const data = frames.subarray(number * size, (number + 1) * size);
  await agent.pushFrame({ t, picture: () => ({ width: stream.width, height: stream.height, channels: 3, data }) });
  if (agent.lookAt !== before) {
    before = agent.lookAt;
    looks.push({ t, a: before?.a, sharpness: before?.sharpness, residual: before?.residual, hands: before?.hands });
  }
}
await agent.finish();
process.stdout.write(JSON.stringify({ looks, clips, account: agent.account }));
