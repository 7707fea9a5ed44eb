// The state machine against the vectors that the agent in Python replays too, and known numbers of the rest.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { IMU, ImuGate, type Sample } from "../src/core/imu.ts";
import { HEIGHT, MOTION, WIDTH, matchBlocks, residual, shrink } from "../src/core/motion.ts";
import { POLICY, blocked } from "../src/core/policy.ts";
import { IDENTITY, exp, integrated } from "../src/core/rotations.ts";
import { SECOND, Trigger, type Thresholds, evidence } from "../src/core/trigger.ts";
import { iou, suppressed } from "../src/core/detector.ts";
import { turnedFlow } from "../src/core/motion.ts";
import { blurPixels, gaussian, grown } from "../src/core/blur.ts";
import { grip, handOf } from "../src/device/mediapipe.ts";
import { gravitySign, inCameraAxes } from "../src/device/sensors.ts";
import { deviceNames } from "../src/device/spool.ts";
import { checksum, crc32c } from "../src/media/crc32c.ts";
import { mp4, ticks } from "../src/media/mp4.ts";

const vectors = JSON.parse(readFileSync(process.env.TRIGGER_VECTORS ?? "../tests/collect/trigger_vectors.json", "utf8")) as {
  thresholds: Thresholds; tolerance: number;
  vectors: { name: string; samples: [number, number][]; a: number[]; clips: [number, number][] }[];
};

for (const vector of vectors.vectors)
  test(`trigger: ${vector.name}`, () => {
    const trigger = new Trigger(vectors.thresholds);
    const clips: [number, number][] = [];
    vector.samples.forEach(([t, e], at) => {
      clips.push(...trigger.step(t, e).map(({ begin, end }): [number, number] => [begin, end]));
      assert.ok(Math.abs(trigger.a - vector.a[at]) < vectors.tolerance, `sample ${at}`);
    });
    clips.push(...trigger.end().map(({ begin, end }): [number, number] => [begin, end]));
    assert.deepEqual(clips, vector.clips);
  });

test("there are vectors", () => assert.ok(vectors.vectors.length >= 9));

test("times must rise", () => {
  const trigger = new Trigger();
  trigger.step(5, 0);
  assert.throws(() => trigger.step(5, 0), /must rise/);
});

test("evidence", () => {
  const hand = { x0: 0, y0: 0, x1: 1, y1: 1, score: 0.8, contact: 1, side: 0 };
  assert.equal(evidence([hand], 0.6, 0.6), 0.8);
  assert.equal(evidence([{ ...hand, contact: 0 }], 0.3, 0.6), 0.2);
  assert.equal(evidence([], 1, 0.6), 0);
});

test("a yaw of one degree moves the principal point by 8.73 px at f = 500", () => {
  const R = exp([0, Math.PI / 180, 0]);
  const flow = turnedFlow([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], R, 500);
  assert.ok(Math.abs(Math.abs(flow[0]) - 8.73) < 0.005 && flow[0] < 0 && Math.abs(flow[1]) < 1e-9);
});

test("a gyroscope at a constant rate integrates to rate times time", () => {
  const samples = Array.from({ length: 101 }, (_, at) => ({ t: at * 1e7, gyro: [0, 0.5, 0] }));
  const expected = exp([0, 0.25, 0]);
  integrated(samples, 2.5e8, 7.5e8).forEach((value, at) => assert.ok(Math.abs(value - expected[at]) < 1e-9));
  assert.deepEqual(integrated([], 0, 1), IDENTITY);
});

function noise(seed: number): Float32Array {
  let state = seed;
  return new Float32Array(WIDTH * HEIGHT).map(() => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return 60 + (state / 4294967296) * 120;
  });
}

function shifted(grey: Float32Array, dx: number, dy: number): Float32Array {
  return grey.map((_, at) => grey[Math.min(HEIGHT - 1, Math.max(0, Math.floor(at / WIDTH) - dy)) * WIDTH +
    Math.min(WIDTH - 1, Math.max(0, (at % WIDTH) - dx))]);
}

test("blocks are found where they went, and a picture that moves as a whole has no motion of its own", () => {
  const before = noise(1), after = shifted(before, 3, -2);
  const blocks = matchBlocks(before, after, MOTION);
  assert.ok(blocks.motion.length > 60);
  blocks.motion.forEach((value, at) => assert.ok(Math.abs(value - (at % 2 === 0 ? 3 : -2)) < 0.5));
  assert.ok(residual(before, after, 0.1, MOTION, null)[0] < 0.2);
  const half = after.map((value, at) => (at % WIDTH < 60 && at > 30 * WIDTH ? before[at] : value));
  assert.ok(residual(before, half, 0.1, MOTION, null)[0] > 1);
});

test("shrinking is the mean of what falls together", () => {
  const data = new Uint8Array(320 * 180 * 3).map((_, at) => (Math.floor(at / 3) % 320 < 2 ? 255 : 0));
  const grey = shrink({ width: 320, height: 180, channels: 3, data });
  assert.ok(Math.abs(grey[0] - 255) < 1e-3 && grey[1] === 0);
});

function gate(seconds: number, sample: (t: number) => Sample): ImuGate {
  const gate = new ImuGate(IMU);
  for (let at = 0; at < seconds * 100; at++) gate.push(at * 1e7, sample(at / 100));
  return gate;
}

test("the motion sensors say rest, walk, active, not worn", () => {
  assert.equal(gate(35, () => [0, -9.81, 0, 0, 0, 0]).state, "rest");
  assert.equal(gate(12, (t) => [0, -9.81 + 2 * Math.sin(4 * Math.PI * t), 0, 0.1, 0, 0]).state, "walk");
  assert.equal(gate(12, (t) => [0, -9.81, 0, 0.3 * Math.sin(t), 0, 0]).state, "active");
  assert.equal(gate(16, (t) => [t > 11 ? 9.81 : 0, t > 11 ? 0 : -9.81, 0, 0.1, 0, 0]).state, "unworn");
});

test("overlapping boxes are one hand, two at most", () => {
  const raw = { boxes: [0, 0, 0.5, 0.5, 0.02, 0, 0.5, 0.5, 0.6, 0.6, 1.2, 1, 0, 0.6, 0.2, 0.9], scores: [0.9, 0.8, 0.7, 0.6],
    sides: [0, 0, 1, 1], contacts: [0, 0, 1, 1] };
  const hands = suppressed(raw);
  assert.deepEqual(hands.map((hand) => hand.score), [0.9, 0.7]);
  assert.equal(hands[1].x1, 1);
  assert.equal(iou(hands[0], hands[0]), 1);
});

test("blocked times of the day", () => {
  const at = (minute: number) => minute * 60_000 + 86_400_000 * 20_000;
  const policy = { ...POLICY, privacy: { blur_hz: 5, minutes_blocked: [[1380, 60]] as [number, number][] } };
  assert.deepEqual([0, 59, 60, 1379, 1380].map((minute) => blocked(policy, at(minute))), [true, true, false, false, true]);
});

test("CRC-32C", () => {
  assert.equal(crc32c(new TextEncoder().encode("123456789")), 0xe3069283);
  assert.equal(checksum(new TextEncoder().encode("123456789")), "crc32c 4waSgw==");
  assert.equal(SECOND, 1e9);
});

test("a blurred box keeps its mean and loses its detail, at any size", () => {
  for (const [width, height] of [[20, 30], [200, 150], [1, 1]]) {
    const data = new Uint8ClampedArray(width * height * 4).map((_, at) => (at % 4 === 3 ? 255 : ((at >> 2) % width) % 2 === 0 ? 200 : 100));
    const before = [...data].filter((_, at) => at % 4 === 0);
    blurPixels(data, width, height);
    const after = [...data].filter((_, at) => at % 4 === 0);
    const middle = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    assert.ok(Math.abs(middle(after) - middle(before)) < 6);
    after.forEach((value, at) => assert.ok(at % width === 0 || Math.abs(value - after[at - 1]) <= 12));
    assert.ok([...data].every((value, at) => at % 4 !== 3 || value === 255));
  }
  assert.ok(Math.abs(gaussian(3).reduce((a, b) => a + b, 0) - 1) < 1e-6);
  assert.deepEqual(grown([0.1, 0.4, 0.3, 0.6], 1).map((value) => Math.round(value * 10) / 10), [0, 0.2, 0.5, 0.8]);
});

test("a phone held upright, or turned to its side, looks down its own z", () => {
  assert.deepEqual(inCameraAxes([0, 9.81, 0], 0), [0, -9.81, 0]); // at rest, upright: the force is up, which is -y
  assert.deepEqual(inCameraAxes([9.81, 0, 0], 90), [0, -9.81, 0]); // turned to the left: its x axis is up
  assert.deepEqual(inCameraAxes([-9.81, 0, 0], 270), [0, -9.81, 0]);
  assert.deepEqual(inCameraAxes([0, 0, 1], 0), [0, 0, -1]);
  assert.equal(gravitySign("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X)"), -1);
  assert.equal(gravitySign("Mozilla/5.0 (Linux; Android 14; Pixel 8)"), 1);
});

test("a pinch is a grip, a flat hand is none; sides are those of the person", () => {
  const hand = (tip: number) => Array.from({ length: 21 }, (_, at) => ({ x: at === 8 || at === 12 ? tip : at === 9 ? 0.5 : 0.3, y: 0.5, z: 0 }));
  assert.equal(grip(hand(0.3), 1), 1);
  assert.equal(grip(hand(0.9), 1), 0);
  const made = handOf(hand(0.9), { label: "Left", score: 0.9 }, 1);
  assert.ok(made.side === 1 && made.x0 >= 0 && made.x1 <= 1 && made.x1 > made.x0);
});

test("what a browser says of its phone", () => {
  assert.deepEqual(deviceNames("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit"), { model: "Pixel 8", os: "Android 14" });
  assert.equal(deviceNames("strange").model, "browser");
});

test("a video's index points at its pictures", async () => {
  const chunk = (byte: number, key: boolean, t: number) => ({ data: new Uint8Array([byte, byte]), key, t });
  const blob = mp4([chunk(7, true, 5e9), chunk(8, false, 5.1e9), chunk(9, true, 5.25e9)], 320, 180, new Uint8Array([1, 2, 3]), 10);
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const at = (name: string): number => Buffer.from(bytes).indexOf(name);
  const offset = new DataView(bytes.buffer).getUint32(at("stco") + 12);
  assert.deepEqual([...bytes.slice(offset)], [7, 7, 8, 8, 9, 9]);
  assert.equal(ticks(1e9), 90_000);
});
