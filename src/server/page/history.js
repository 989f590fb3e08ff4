// The figures of the last hour: those that the daemon kept before this page was open, then those of
// the stream, one per second.

const KEPT = 3600;
const STEP_MS = 1_000;
/** Points further apart than this many steps are not joined by a line. */
const GAP_STEPS = 4;

export class History {
  #points = [];
  /** What the daemon kept, by replica; its own figures under the empty name. */
  #past = new Map();

  /** Adds figures. Skips those repeated after a reconnect. */
  add(figures) {
    const at = Date.parse(figures.at);
    if (this.#points.length && at <= this.#points.at(-1).at) return;
    const replicas = new Map(figures.replicas.map((replica) => [replica.replica, replica]));
    this.#points.push({ at, all: figures, replicas });
    if (this.#points.length > KEPT) this.#points.shift();
  }

  /** Takes the response of `/v1/history`. */
  keep({ replica, step_seconds: seconds, at, ...figures }) {
    const names = Object.keys(figures);
    const point = (time, n) => ({
      at: time * 1000, step: seconds * 1000, figures: Object.fromEntries(names.map((name) => [name, figures[name][n]])),
    });
    this.#past.set(replica ?? '', at.map(point));
  }

  get last() {
    return this.#points.at(-1);
  }

  /** The figures of the daemon or of one replica since `from`, with `null` for a gap. */
  since(from, replica) {
    const live = this.#points
      .map(({ at, all, replicas }) => ({ at, step: STEP_MS, figures: replica ? replicas.get(replica) : all }))
      .filter(({ figures }) => figures);
    const begin = live.length ? live[0].at - STEP_MS / 2 : Infinity;
    const points = [...(this.#past.get(replica) ?? []).filter(({ at }) => at < begin), ...live];
    const first = points.findLastIndex(({ at }) => at < from);
    const found = [];
    let before = null;
    for (const point of points.slice(Math.max(0, first))) {
      if (before !== null && point.at - before.at > GAP_STEPS * Math.max(before.step, point.step)) found.push(null);
      found.push(point);
      before = point;
    }
    return found;
  }
}
