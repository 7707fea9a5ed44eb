// Clips that wait on the phone: written whole or not at all, counted against the day's budget, forgotten on demand.

import type { Clip } from "../core/agent.ts";
import type { Policy } from "../core/policy.ts";
import { SECOND } from "../core/trigger.ts";
import { mp4 } from "../media/mp4.ts";
import { table, tableWithList } from "../media/parquet.ts";
import type { Database } from "./db.ts";
import type { Cut } from "./ring.ts";

export interface Identity {
  device: string; token: string; install: string; expires: number;
  consent: { contributor_pseudonym: string; policy_version: string; retention_days: number };
}

export interface FileRecord { name: string; bytes: number; sha256: string }

/** A clip in the spool; its files lie beside it. `end` is of the wall clock, in ms. */
export interface Held {
  uuid: string; manifest: string; files: FileRecord[];
  begin: number; end: number; seconds: number; bytes: number; value: number;
  refused: string | null;
}

/** What of a manifest does not follow from the clip. */
export interface Session { identity: Identity; session: string; fps: number; lens: string; policy: Policy; blurred: boolean }

/** One of the day's clips, held or sent. */
interface Counted { uuid: string; day: number; bytes: number; value: number }

const DAY_MS = 86_400_000;
const AXES = ["ax", "ay", "az", "gx", "gy", "gz"] as const;
const HAND = ["x0", "y0", "x1", "y1", "score", "contact"] as const;

const hex = (bytes: ArrayBuffer): string => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Model and system as this browser says them. */
export function deviceNames(agent = navigator.userAgent): { model: string; os: string } {
  const inside = /\(([^)]*)\)/.exec(agent)?.[1].split(";").map((part) => part.trim()) ?? [];
  const named = (names: RegExp): string | undefined => inside.find((part) => names.test(part));
  const os = named(/Android|iPhone OS|CPU OS/) ?? named(/Linux|Mac OS|Windows/) ?? "unknown";
  return { model: (inside[2] ?? inside[0] ?? "browser").slice(0, 200), os: os.slice(0, 200) };
}

/** Writes a clip into the spool; the uuid, or null where the day's budget has no room for it. */
export async function write(
  db: Database, about: Session, clip: Clip, cut: Cut, wallMs: (t: number) => number,
): Promise<string | null> {
  const times = cut.chunks.map((chunk) => chunk.t), first = times[0], last = times[times.length - 1];
  const inside = ({ t }: { t: number }): boolean => first <= t && t <= last;
  const looks = clip.looks.filter(inside), imu = clip.imu.filter(inside);
  const parts: [string, Blob][] = [
    ["video.mp4", mp4(cut.chunks, cut.width, cut.height, cut.description, about.fps)],
    ["frames.parquet", blob(table([["t_ns", "i64", times], ["key", "bool", cut.chunks.map((chunk) => Number(chunk.key))]]))],
    ["imu.parquet", blob(table([["t_ns", "i64", imu.map(({ t }) => t)],
      ...AXES.map((axis, at): [string, "f32", number[]] => [axis, "f32", imu.map(({ sample }) => sample[at])])]))],
    ["edge.parquet", blob(tableWithList(
      [["t_ns", "i64", looks.map(({ t }) => t)], ["a", "f32", looks.map(({ a }) => a)],
        ["sharpness", "f32", looks.map((look) => look.sharpness)], ["residual_px", "f32", looks.map((look) => look.residual)]],
      "hands", [...HAND.map((name): [string, "f32"] => [name, "f32"]), ["side", "i8"]],
      looks.map(({ hands }) => hands.map((hand) => ({ ...hand })))))],
  ];
  const files = await Promise.all(parts.map(async ([name, data]): Promise<FileRecord> =>
    ({ name, bytes: data.size, sha256: hex(await crypto.subtle.digest("SHA-256", await data.arrayBuffer())) })));
  const period = SECOND / about.fps;
  const gaps = times.flatMap((t, at) => (at > 0 && t - times[at - 1] > 3 * period ? [[times[at - 1], t]] : []));
  const uuid = crypto.randomUUID();
  const manifest = {
    schema_version: 1, clip_uuid: uuid,
    device: { id: about.identity.device, ...deviceNames(), lens_id: about.lens },
    session: about.session,
    t0_wall_ns: Math.round(wallMs(first)) * 1_000_000, clock_offset_ns: 0,
    fps_nominal: about.fps, width: cut.width, height: cut.height, rotation: 0, n_frames: times.length,
    trigger: { reason: "hands", thresholds: about.policy.trigger, span: [clip.span.begin, clip.span.end] },
    consent: about.identity.consent, privacy: { faces_blurred: about.blurred }, files, gaps,
  };
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const held: Held = {
    uuid, manifest: JSON.stringify(manifest), files, bytes, value: clip.value, refused: null,
    begin: wallMs(first), end: wallMs(last), seconds: (last - first) / SECOND,
  };
  const day = Math.floor(held.begin / DAY_MS);
  const gone = await overBudget(db, { uuid, day, bytes, value: clip.value }, about.policy.savings.day_mib * 2 ** 20);
  if (gone.includes(uuid)) return null;
  await db.change(["clips", "files"], (at) => {
    for (const [name, data] of parts) at("files").put(data, `${uuid}/${name}`);
    at("clips").put(held, uuid);
  });
  return uuid;
}

const blob = (bytes: Uint8Array): Blob => new Blob([bytes as Uint8Array<ArrayBuffer>]);

/** Enters a clip into the day's count; over the budget the clips that are worth least a byte go, of those still here. */
async function overBudget(db: Database, clip: Counted, most: number): Promise<string[]> {
  const before = (await db.get<Counted[]>("kv", "day")) ?? [];
  const here = new Set([clip.uuid, ...(await clips(db)).map(({ uuid }) => uuid)]);
  let today = [...before.filter(({ day }) => day === clip.day), clip];
  let total = today.reduce((sum, { bytes }) => sum + bytes, 0);
  const gone: string[] = [];
  for (const one of [...today].filter(({ uuid }) => here.has(uuid)).sort((a, b) => a.value / a.bytes - b.value / b.bytes)) {
    if (total <= most) break;
    total -= one.bytes;
    gone.push(one.uuid);
  }
  today = today.filter(({ uuid }) => !gone.includes(uuid));
  await db.put("kv", "day", today);
  for (const uuid of gone) if (uuid !== clip.uuid) await remove(db, uuid);
  return gone;
}

/** All clips that wait, the oldest first. */
export async function clips(db: Database): Promise<Held[]> {
  return (await db.all<Held>("clips")).sort((one, other) => one.begin - other.begin);
}

/** A clip goes with its files, in one step. */
export function remove(db: Database, uuid: string): Promise<void> {
  return db.change(["clips", "files"], (at) => {
    at("clips").delete(uuid);
    at("files").delete(IDBKeyRange.bound(`${uuid}/`, `${uuid}0`));
  });
}

/** Erases clips as if they had never been: they do not count for the day either. */
export async function erase(db: Database, uuids: readonly string[]): Promise<void> {
  for (const uuid of uuids) await remove(db, uuid);
  const day = (await db.get<Counted[]>("kv", "day")) ?? [];
  await db.put("kv", "day", day.filter(({ uuid }) => !uuids.includes(uuid)));
}

/** Erases clips that reach beyond a wall clock's time (ms); how many. */
export async function forgetSince(db: Database, since: number): Promise<number> {
  const found = (await clips(db)).filter(({ end }) => end >= since);
  await erase(db, found.map(({ uuid }) => uuid));
  return found.length;
}
