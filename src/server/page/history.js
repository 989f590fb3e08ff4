// The figures of the last hour, one per second.

const KEPT = 3600;
/** Points further apart than this are not joined by a line. */
const GAP_MS = 4_000;

export class History {
  #points = [];

  /** Adds figures. Skips those repeated after a reconnect. */
  add(figures) {
    const at = Date.parse(figures.at);
    if (this.#points.length && at <= this.#points.at(-1).at) return;
    const replicas = new Map(figures.replicas.map((replica) => [replica.replica, replica]));
    this.#points.push({ at, all: figures, replicas });
    if (this.#points.length > KEPT) this.#points.shift();
  }

  get last() {
    return this.#points.at(-1);
  }

  /** The figures of the daemon or of one replica since `from`, with `null` for a gap. */
  since(from, replica) {
    const first = this.#points.findLastIndex((point) => point.at < from);
    const found = [];
    let before = null;
    for (const point of this.#points.slice(Math.max(0, first))) {
      const figures = replica ? point.replicas.get(replica) : point.all;
      if (!figures) continue;
      if (before !== null && point.at - before > GAP_MS) found.push(null);
      found.push({ at: point.at, figures });
      before = point.at;
    }
    return found;
  }
}
