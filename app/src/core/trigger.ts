// From the evidence of hands at work to the clips that are kept: collect/trigger.py in another language. The vectors
// in tests/collect/trigger_vectors.json are replayed by both.

export const SECOND = 1_000_000_000;

export interface Hand {
  x0: number; y0: number; x1: number; y1: number;
  score: number; contact: number;
  /** 0 left, 1 right */
  side: number;
}

export interface Thresholds {
  follow: number; rate_hz: number;
  start: number; start_s: number;
  stop: number; stop_s: number;
  pre_s: number; post_s: number;
  min_s: number; max_s: number; split_s: number; merge_s: number;
  m0_px: number;
}

export const THRESHOLDS: Thresholds = {
  follow: 0.3, rate_hz: 5, start: 0.55, start_s: 0.6, stop: 0.3, stop_s: 3, pre_s: 2, post_s: 1,
  min_s: 2, max_s: 120, split_s: 20, merge_s: 1.5, m0_px: 0.6,
};

/** A clip to keep: from, to (ns), mean and peak of the average over it. */
export interface Span { begin: number; end: number; mean: number; peak: number }

/** Evidence in [0, 1] of one look. */
export function evidence(hands: readonly Hand[], motionPx: number, m0Px: number): number {
  const moving = Math.min(1, Math.max(0, motionPx) / m0Px);
  return hands.reduce((most, hand) => Math.max(most, hand.score * (0.5 + 0.5 * hand.contact) * moving), 0);
}

/** The weight of new evidence after a step (ns): `follow` at `rate_hz`, the same half-life at other rates. */
export function followWeight(limits: Thresholds, step: number | null): number {
  if (step === null) return limits.follow;
  const steps = (step * limits.rate_hz) / SECOND;
  return Math.abs(steps - 1) < 1e-6 ? limits.follow : 1 - (1 - limits.follow) ** steps;
}

const ns = (seconds: number): number => Math.round(seconds * SECOND);

/** The state machine; `step` takes samples in order and returns the clips that are final by then. */
export class Trigger {
  a = 0;
  running = false;
  private last: number | null = null;
  private above: number | null = null;
  private below: number | null = null;
  private clip: { begin: number; end: number | null } | null = null;
  private doneTo = -Infinity;
  private trace: [number, number][] = [];

  constructor(readonly limits: Thresholds = THRESHOLDS) {}

  step(t: number, e: number): Span[] {
    if (this.last !== null && t <= this.last) throw new Error(`times must rise: ${t} after ${this.last}`);
    const weight = followWeight(this.limits, this.last === null ? null : t - this.last);
    this.a = weight * Math.min(1, Math.max(0, e)) + (1 - weight) * this.a;
    this.last = t;
    this.trace.push([t, this.a]);
    const found = this.settled(t);
    if (!this.running) found.push(...this.lookForStart(t));
    else this.lookForStop(t);
    if (this.running) found.push(...this.split(t));
    this.forget(t);
    return found;
  }

  /** The stream is over: what goes on ends now. */
  end(): Span[] {
    if (this.clip === null || this.last === null) return [];
    const { begin, end } = this.clip;
    this.clip = null;
    this.running = false;
    return this.emit(begin, Math.min(end ?? this.last, this.last));
  }

  /** Whether a clip is being made: it goes on, or has ended and may still be joined by the next. */
  get open(): boolean {
    return this.clip !== null;
  }

  /** The earliest time of which pictures may still be wanted. */
  get needsFrom(): number | null {
    if (this.last === null) return null;
    const soonest = this.last - ns(this.limits.pre_s + this.limits.start_s);
    return this.clip === null ? soonest : Math.min(soonest, this.clip.begin);
  }

  private lookForStart(t: number): Span[] {
    const limits = this.limits;
    if (this.a <= limits.start) {
      this.above = null;
      return [];
    }
    this.above ??= t;
    if (t - this.above < ns(limits.start_s)) return [];
    this.running = true;
    this.above = this.below = null;
    const before = this.clip;
    if (before !== null && t - before.begin < ns(limits.max_s)) {
      this.clip = { begin: before.begin, end: null }; // the gap is too short to be one
      return [];
    }
    const found = before === null ? [] : this.emit(before.begin, before.end ?? 0);
    this.clip = { begin: Math.max(t - ns(limits.pre_s), this.doneTo), end: null };
    return found;
  }

  private lookForStop(t: number): void {
    const limits = this.limits;
    if (this.a >= limits.stop) {
      this.below = null;
      return;
    }
    this.below ??= t;
    if (t - this.below >= ns(limits.stop_s) && this.clip !== null) {
      this.clip.end = this.below + ns(limits.post_s);
      this.running = false;
      this.below = null;
    }
  }

  /** The clip that has ended and that none which begins from now on can join. */
  private settled(t: number): Span[] {
    const clip = this.clip;
    if (clip === null || clip.end === null || this.running) return [];
    if (t - ns(this.limits.pre_s) - clip.end < ns(this.limits.merge_s)) return [];
    this.clip = null;
    return this.emit(clip.begin, clip.end);
  }

  private split(t: number): Span[] {
    const clip = this.clip;
    if (clip === null || t - clip.begin < ns(this.limits.max_s)) return [];
    const since = t - ns(this.limits.split_s);
    let at = t, least = Infinity;
    for (const [when, a] of this.trace) if (when >= since && a < least) [least, at] = [a, when];
    const found = this.emit(clip.begin, at);
    clip.begin = at;
    return found;
  }

  private emit(begin: number, end: number): Span[] {
    this.doneTo = Math.max(this.doneTo, end);
    if (end - begin < ns(this.limits.min_s)) return [];
    let values = this.trace.filter(([when]) => begin <= when && when <= end).map(([, a]) => a);
    if (values.length === 0) values = [this.a];
    const sum = values.reduce((one, other) => one + other, 0);
    return [{ begin, end, mean: sum / values.length, peak: Math.max(...values) }];
  }

  private forget(t: number): void {
    const keep = this.clip !== null ? this.clip.begin : t - ns(this.limits.pre_s + 1);
    let gone = 0;
    while (gone < this.trace.length && this.trace[gone][0] < keep) gone++;
    if (gone > 0) this.trace.splice(0, gone);
  }
}
