// An MP4 file of H.264 groups, whole in memory but for its pictures: one track, presentation times in 1/90000 s.

export const TICKS = 90_000;

export interface Chunk { data: Uint8Array<ArrayBuffer>; key: boolean; t: number }

const text = (value: string): number[] => [...value].map((letter) => letter.charCodeAt(0));
const u16 = (value: number): number[] => [(value >> 8) & 255, value & 255];
const u32 = (value: number): number[] => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

function box(kind: string, ...parts: (number[] | Uint8Array)[]): number[] {
  const body: number[] = [];
  for (const part of parts) for (const byte of part) body.push(byte);
  return [...u32(8 + body.length), ...text(kind), ...body];
}

/** Nanoseconds as a presentation time; as collect/_video.py rounds them. */
export const ticks = (ns: number): number => Math.floor((ns * TICKS + 500_000_000) / 1_000_000_000);

const MATRIX = [1, 0, 0, 0, 1, 0, 0, 0, 0x4000].flatMap((value, at) => u32(at === 8 ? 0x40000000 : value * 0x10000));

/** A video of chunks whose times (ns) rise; `description` is the decoder's configuration (avcC). */
export function mp4(chunks: readonly Chunk[], width: number, height: number, description: Uint8Array, fps: number): Blob {
  const first = chunks[0].t;
  const times = chunks.map((chunk) => ticks(chunk.t - first));
  const steps = times.map((time, at) => (at + 1 < times.length ? times[at + 1] - time : Math.round(TICKS / fps)));
  const duration = steps.reduce((sum, step) => sum + step, 0);
  const runs: [number, number][] = [];
  for (const step of steps) {
    if (runs.length > 0 && runs[runs.length - 1][1] === step) runs[runs.length - 1][0]++;
    else runs.push([1, step]);
  }
  const keys = chunks.flatMap((chunk, at) => (chunk.key ? [at + 1] : []));
  const head = box("ftyp", text("isom"), u32(512), text("isomiso2avc1mp41"));
  const entry = box("avc1", new Array(6).fill(0), u16(1), new Array(16).fill(0), u16(width), u16(height), u32(0x480000),
    u32(0x480000), u32(0), u16(1), new Array(32).fill(0), u16(24), u16(0xffff), box("avcC", description));
  const moov = (offset: number): number[] =>
    box("moov",
      box("mvhd", u32(0), u32(0), u32(0), u32(TICKS), u32(duration), u32(0x10000), u16(0x100), new Array(10).fill(0), MATRIX,
        new Array(24).fill(0), u32(2)),
      box("trak",
        box("tkhd", u32(3), u32(0), u32(0), u32(1), u32(0), u32(duration), new Array(16).fill(0), MATRIX, u32(width * 0x10000),
          u32(height * 0x10000)),
        box("mdia",
          box("mdhd", u32(0), u32(0), u32(0), u32(TICKS), u32(duration), u16(0x55c4), u16(0)),
          box("hdlr", u32(0), u32(0), text("vide"), new Array(12).fill(0), text("video"), [0]),
          box("minf",
            box("vmhd", u32(1), new Array(8).fill(0)),
            box("dinf", box("dref", u32(0), u32(1), box("url ", u32(1)))),
            box("stbl",
              box("stsd", u32(0), u32(1), entry),
              box("stts", u32(0), u32(runs.length), runs.flatMap(([count, step]) => [...u32(count), ...u32(step)])),
              box("stss", u32(0), u32(keys.length), keys.flatMap(u32)),
              box("stsc", u32(0), u32(1), u32(1), u32(chunks.length), u32(1)),
              box("stsz", u32(0), u32(0), u32(chunks.length), chunks.flatMap((chunk) => u32(chunk.data.length))),
              box("stco", u32(0), u32(1), u32(offset)))))));
  const index = moov(head.length + moov(0).length + 8);
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.data.length, 0);
  return new Blob([new Uint8Array([...head, ...index, ...u32(8 + bytes), ...text("mdat")]), ...chunks.map((chunk) => chunk.data)],
    { type: "video/mp4" });
}
