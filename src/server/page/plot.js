// A time series plot as SVG: lines, axes with units, a cursor, and a legend with values.

import { el, setAttribute, setText } from './dom.js';
import { clock, clockMinutes } from './format.js';

const SVG = 'http://www.w3.org/2000/svg';
const HEIGHT = 150;
const MARGIN = { top: 8, right: 8, bottom: 20, left: 46 };
const PIXELS_A_POINT = 2;

function svg(tag, attributes = {}) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Axis steps for numbers: 1, 2 or 5 times a power of ten. */
export function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((step) => step >= rough * 0.999);
}

/** Axis steps for seconds: round minutes, hours or days if they are long. */
export function niceSeconds(rough) {
  const steps = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400];
  if (rough <= 30) return niceStep(rough) > 20 ? 30 : niceStep(rough);
  return steps.find((step) => step >= rough) ?? 86_400 * niceStep(rough / 86_400);
}

export class Plot {
  #host;
  #svg;
  #grid = svg('g', { class: 'grid' });
  #lines = svg('g');
  #cursor = svg('line', { class: 'cursor' });
  #options;
  #legend;
  #when;
  #width = 0;
  #scale = null;

  /**
   * `series` are `{ label, name, value(figures), ofAll }` in drawing order; `format` and `axis` format
   * a value in the legend and at the axis; `floor` is the minimum upper end of the axis; `fold`
   * selects `mean` or `max` for merged points.
   */
  constructor(host, options, onCursor) {
    this.#host = host;
    this.#options = options;
    this.#when = el('span', { class: 'when' });
    this.#legend = options.series.map((series) => {
      const value = el('strong', {}, '–');
      const sample = svg('svg', { class: 'sample', width: 22, height: 8, 'aria-hidden': 'true' });
      sample.append(svg('line', { class: `line ${series.name}`, x1: 1, y1: 4, x2: 21, y2: 4 }));
      return { series, value, node: el('li', {}, sample, `${series.label} `, value) };
    });
    this.#svg = svg('svg', { class: 'canvas', role: 'img', tabindex: '0', height: HEIGHT });
    this.#svg.append(this.#grid, this.#lines, this.#cursor);
    host.append(
      el('figcaption', {}, el('h3', {}, options.title, this.#when), el('ul', { class: 'legend' }, ...this.#legend.map((entry) => entry.node))),
      this.#svg,
    );
    const point = (event) => onCursor(this.#at(event.clientX));
    this.#svg.addEventListener('pointermove', point);
    this.#svg.addEventListener('pointerdown', point);
    this.#svg.addEventListener('pointerleave', () => onCursor(null));
    this.#svg.addEventListener('blur', () => onCursor(null));
    this.#svg.addEventListener('keydown', (event) => this.#key(event, onCursor));
    new ResizeObserver(([entry]) => {
      this.#width = Math.floor(entry.contentRect.width);
      options.redraw();
    }).observe(host);
  }

  #at(clientX) {
    if (!this.#scale) return null;
    const { from, to, width } = this.#scale;
    const x = clientX - this.#svg.getBoundingClientRect().left - MARGIN.left;
    return from + (Math.min(Math.max(x, 0), width) / width) * (to - from);
  }

  #key(event, onCursor) {
    if (!this.#scale) return;
    const { from, to, cursor } = this.#scale;
    const step = (to - from) / 60;
    const moves = { ArrowLeft: -step, ArrowRight: step, Home: from - to, End: to - from };
    if (event.key === 'Escape') onCursor(null);
    else if (event.key in moves) {
      onCursor(Math.min(Math.max((cursor ?? to) + moves[event.key], from), to));
      event.preventDefault();
    }
  }

  /** Draws `points` of the history. `single` means one replica, which lacks the `ofAll` series. */
  draw(points, from, to, cursor, single) {
    const width = this.#width - MARGIN.left - MARGIN.right;
    if (width < 40) return;
    const { floor, step, fold } = this.#options;
    const series = this.#options.series.filter((one) => !(single && one.ofAll));
    this.#legend.forEach((entry) => {
      entry.node.hidden = !series.includes(entry.series);
    });
    setAttribute(this.#svg, 'width', String(this.#width));
    setAttribute(this.#svg, 'viewBox', `0 0 ${this.#width} ${HEIGHT}`);
    this.#scale = { from, to, width, cursor };

    const folded = series.map(({ value }) => foldPoints(points, value, from, to, width, fold));
    const most = Math.max(floor, ...folded.flat().map((point) => point?.y ?? 0));
    const tick = step(most / 3);
    const top = Math.ceil((most / tick) * 0.999) * tick;
    const height = HEIGHT - MARGIN.top - MARGIN.bottom;
    const yOf = (value) => MARGIN.top + height * (1 - value / top);

    this.#drawGrid(from, to, width, tick, top, yOf);
    while (this.#lines.children.length < series.length) this.#lines.append(svg('path'));
    series.forEach(({ name }, n) => {
      const path = this.#lines.children[n];
      setAttribute(path, 'class', `line ${name}`);
      setAttribute(path, 'd', pathOf(folded[n], yOf));
    });
    while (this.#lines.children.length > series.length) this.#lines.lastElementChild.remove();
    this.#drawLegend(points, cursor, width);
  }

  #drawGrid(from, to, width, tick, top, yOf) {
    const parts = [];
    for (let value = 0; value <= top * 1.001; value += tick) {
      const y = Math.round(yOf(value)) + 0.5;
      parts.push(svg('line', { x1: MARGIN.left, x2: MARGIN.left + width, y1: y, y2: y }));
      const label = svg('text', { x: MARGIN.left - 6, y: y + 4, 'text-anchor': 'end' });
      label.textContent = this.#options.axis(value);
      parts.push(label);
    }
    const between = niceSeconds((to - from) / 1000 / Math.min(6, Math.max(2, width / 70))) * 1000;
    for (let at = Math.ceil(from / between) * between; at <= to; at += between) {
      const x = Math.round(MARGIN.left + (width * (at - from)) / (to - from)) + 0.5;
      parts.push(svg('line', { class: 'tick', x1: x, x2: x, y1: yOf(0), y2: yOf(0) + 4 }));
      if (x < MARGIN.left + 12 || x > MARGIN.left + width - 12) continue;
      const label = svg('text', { x, y: HEIGHT - 4, 'text-anchor': 'middle' });
      label.textContent = clockMinutes(at);
      parts.push(label);
    }
    this.#grid.replaceChildren(...parts);
  }

  #drawLegend(points, cursor, width) {
    const { format, title } = this.#options;
    const legend = this.#legend.filter((entry) => !entry.node.hidden);
    const real = points.filter((point) => point !== null);
    const shown = cursor === null ? real.at(-1) : nearest(real, cursor);
    for (const { series, value } of legend) setText(value, shown ? format(series.value(shown.figures)) : '–');
    setText(this.#when, cursor !== null && shown ? ` at ${clock(shown.at)}` : '');
    const values = legend.map(({ series, value }) => `${series.label} ${value.textContent}`);
    setAttribute(this.#svg, 'aria-label', `${title}${this.#when.textContent}: ${values.join(', ')}`);
    const { from, to } = this.#scale;
    const at = shown && cursor !== null ? Math.max(shown.at, from) : null;
    const x = at === null ? -10 : MARGIN.left + (width * (at - from)) / (to - from);
    for (const [name, value] of [['x1', x], ['x2', x], ['y1', MARGIN.top], ['y2', HEIGHT - MARGIN.bottom]]) {
      setAttribute(this.#cursor, name, String(value));
    }
  }
}

function nearest(points, at) {
  const distance = (point) => Math.abs(point.at - at);
  return points.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), undefined);
}

/** Merges points that share a few pixels. Gaps stay gaps. */
function foldPoints(points, value, from, to, width, fold) {
  const folded = [];
  let bucket = null;
  const end = () => {
    if (bucket) folded.push({ x: bucket.x / bucket.n, y: fold === 'mean' ? bucket.sum / bucket.n : bucket.most });
    bucket = null;
  };
  for (const point of points) {
    if (point === null) {
      end();
      folded.push(null);
      continue;
    }
    const x = MARGIN.left + Math.max(0, (width * (point.at - from)) / (to - from));
    // Aligned to the clock, not to the edge, so that the lines do not jitter while they scroll.
    const slot = Math.floor((point.at / (to - from)) * (width / PIXELS_A_POINT));
    if (bucket && bucket.slot !== slot) end();
    bucket ??= { slot, x: 0, sum: 0, most: 0, n: 0 };
    const y = value(point.figures);
    bucket.x += x;
    bucket.sum += y;
    bucket.most = Math.max(bucket.most, y);
    bucket.n += 1;
  }
  end();
  return folded;
}

function pathOf(folded, yOf) {
  let path = '';
  let pen = 'M';
  for (const point of folded) {
    if (point === null) {
      pen = 'M';
      continue;
    }
    path += `${pen}${point.x.toFixed(1)} ${yOf(point.y).toFixed(1)}`;
    pen = 'L';
  }
  return path;
}
