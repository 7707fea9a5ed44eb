// The ring buffer: encoded video in groups of about a second, each beginning with a key frame; the oldest are dropped.
// Only the group that is open lies in memory, the others on the phone's storage.

import type { Frame, Ring } from "../core/agent.ts";
import { SECOND } from "../core/trigger.ts";
import type { Chunk } from "../media/mp4.ts";
import type { Database } from "./db.ts";

const GROUP_S = 1;
const WAITING_MOST = 12;
const BITS_A_PIXEL = 0.12, BITS_LEAST = 1_000_000;
const CODECS = ["avc1.640028", "avc1.4D0028", "avc1.42E028"];

/** A frame as the camera gave it, or as it may be stored. */
export interface VideoSource extends Frame { video(): VideoFrame }

interface Group { id: number; times: number[]; chunks: Chunk[] | null }

/** What of the ring belongs to a clip. */
export interface Cut { chunks: Chunk[]; description: Uint8Array; width: number; height: number }

export class EncoderError extends Error {}

export class VideoRing implements Ring {
  private groups: Group[] = [];
  private encoder: VideoEncoder | null = null;
  private size = { width: 0, height: 0 };
  private description: Uint8Array | null = null;
  private times = new Map<number, number>();
  private begun = -Infinity;
  private pushed = -Infinity;
  private ignore = -Infinity;
  private next = 0;
  private failed: string | null = null;
  private saving: Promise<void> = Promise.resolve();

  /** `stored` turns a frame into the picture that may be stored: it takes over the frame that it is given. */
  constructor(
    private readonly db: Database,
    private readonly fps: number,
    private readonly stored: (frame: VideoSource) => Promise<VideoFrame>,
  ) {}

  /** Groups of a run that is over go. */
  static async clear(db: Database): Promise<void> {
    await db.change(["ring"], (at) => void at("ring").clear());
  }

  async push(frame: Frame): Promise<void> {
    if (this.failed !== null) throw new EncoderError(this.failed);
    const video = await this.stored(frame as VideoSource);
    try {
      if (this.encoder === null || video.displayWidth !== this.size.width || video.displayHeight !== this.size.height)
        await this.open(video.displayWidth, video.displayHeight);
      const encoder = this.encoder as VideoEncoder | null;
      if (encoder === null) return;
      while (encoder.encodeQueueSize > WAITING_MOST)
        await new Promise((resolve) => encoder.addEventListener("dequeue", resolve, { once: true }));
      const key = frame.t - this.begun >= (GROUP_S - 0.5 / this.fps) * SECOND;
      if (key) this.begun = frame.t;
      this.times.set(video.timestamp, frame.t);
      this.pushed = video.timestamp;
      encoder.encode(video, { keyFrame: key });
    } finally {
      video.close();
    }
  }

  private async open(width: number, height: number): Promise<void> {
    if (this.encoder !== null && this.encoder.state === "configured") await this.encoder.flush();
    const config = await this.supported(width, height);
    this.dropAll();
    this.size = { width, height };
    this.encoder?.close();
    this.encoder = new VideoEncoder({
      output: (chunk, meta) => this.arrived(chunk, meta),
      error: (error) => { this.failed = `the phone's video encoder failed (${error.message})`; },
    });
    this.encoder.configure(config);
    this.begun = -Infinity;
  }

  private async supported(width: number, height: number): Promise<VideoEncoderConfig> {
    if (typeof VideoEncoder === "undefined")
      throw new EncoderError("this browser cannot encode video (it has no WebCodecs); use a newer Chrome, Edge or Safari");
    for (const codec of CODECS) {
      const config: VideoEncoderConfig = {
        codec, width, height, framerate: this.fps, latencyMode: "realtime", avc: { format: "avc" },
        bitrate: Math.max(BITS_LEAST, Math.round(width * height * this.fps * BITS_A_PIXEL)),
      };
      if ((await VideoEncoder.isConfigSupported(config)).supported) return config;
    }
    throw new EncoderError(`this browser cannot encode H.264 of ${width} x ${height} pixels`);
  }

  private arrived(chunk: EncodedVideoChunk, meta?: EncodedVideoChunkMetadata): void {
    const t = this.times.get(chunk.timestamp);
    for (const stamp of this.times.keys()) if (stamp <= chunk.timestamp) this.times.delete(stamp);
    const description = meta?.decoderConfig?.description;
    if (description !== undefined) {
      const view = ArrayBuffer.isView(description);
      const [buffer, from] = view ? [description.buffer, description.byteOffset] : [description, 0];
      this.description = new Uint8Array(buffer, from, description.byteLength).slice();
    }
    if (t === undefined || chunk.timestamp <= this.ignore) return;
    const data = new Uint8Array(chunk.byteLength);
    chunk.copyTo(data);
    const key = chunk.type === "key";
    if (key) {
      this.save();
      this.groups.push({ id: this.next++, times: [], chunks: [] });
    }
    const open = this.groups[this.groups.length - 1];
    if (open === undefined || open.chunks === null) return; // no key frame yet
    open.times.push(t);
    open.chunks.push({ data, key, t });
  }

  /** The group that was open goes to the phone's storage. */
  private save(): void {
    const group = this.groups[this.groups.length - 1];
    if (group === undefined || group.chunks === null) return;
    const chunks = group.chunks;
    this.saving = this.saving.then(() => this.db.put("ring", group.id, chunks)).then(
      () => { group.chunks = null; },
      (error) => { this.failed = `the phone's storage is full or broken (${String(error)})`; },
    );
  }

  dropBefore(t: number): void {
    while (this.groups.length > 1 && this.groups[1].times.length > 0 && this.groups[1].times[0] <= t)
      this.remove(this.groups.shift() as Group);
  }

  dropAll(): void {
    this.groups.forEach((group) => this.remove(group));
    this.groups = [];
    this.ignore = this.pushed;
    this.begun = -Infinity;
  }

  private remove(group: Group): void {
    this.saving = this.saving.then(() => this.db.change(["ring"], (at) => void at("ring").delete(group.id)));
  }

  /** Waits until every frame that was pushed is in its group; the next one begins a group. */
  async flush(): Promise<void> {
    if (this.encoder !== null && this.encoder.state === "configured") await this.encoder.flush();
    this.begun = -Infinity;
  }

  /** The groups that hold frames of a time, joined; null when there are none. Which they are is decided at once, and
   * what is dropped later is still read. */
  read(begin: number, end: number): Promise<Cut | null> {
    const chosen = this.groups.filter(({ times }) => times.length > 0 && times[times.length - 1] >= begin && times[0] <= end);
    const { description, size } = this;
    if (chosen.length === 0 || description === null) return Promise.resolve(null);
    const open = chosen.map(({ chunks }) => chunks?.slice());
    const one = (group: Group, at: number): Chunk[] | Promise<Chunk[] | undefined> =>
      open[at] ?? this.db.get<Chunk[]>("ring", group.id);
    const reading = this.saving.then(() => Promise.all(chosen.map(one)));
    this.saving = reading.then(() => undefined, () => undefined);
    return reading.then((parts) => ({ chunks: parts.flatMap((part) => part ?? []), description, ...size }));
  }

  /** Ends the encoder and removes everything. */
  async close(): Promise<void> {
    this.dropAll();
    if (this.encoder !== null && this.encoder.state !== "closed") this.encoder.close();
    this.encoder = null;
    await this.saving;
  }
}
