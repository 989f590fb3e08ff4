// The figures of the last hour, one a second, as they came.

const KEPT = 3600;
/** Further apart than this, two points are not joined: nobody was looking in between. */
const GAP_MS = 4_000;

export class History {
  #points = [];

  /** Takes the figures of a second; what is repeated after a reconnect is left out. */
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

  /** The figures of all, or of one replica, since `from`; a `null` where there is a gap. */
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
