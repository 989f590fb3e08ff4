// The overview: summary, replicas, plots, events.

import { announce } from './dialogs.js';
import { byId, el, setAttribute, setText } from './dom.js';
import * as format from './format.js';
import { Plot, niceSeconds, niceStep } from './plot.js';
import { iconOf } from './replicas.js';

const KEPT_EVENTS = 100;
const LEVEL_ICONS = { good: '✓', warn: '!', bad: '▲', idle: '–' };

/** The summary as `[level, title, text]`. */
export function judged(figures) {
  const { replicas, backlog_tasks: backlog, dead_letters: dead, lag_seconds: lag } = figures;
  if (replicas.length === 0) return ['idle', 'Nothing to do yet', 'No write was accepted since the start, and none was recovered from disk.'];
  const named = (state) => replicas.filter((replica) => replica.state === state).map((replica) => format.node(replica.replica));
  const [failing, recovering, paused] = ['failing', 'recovering', 'paused'].map(named);
  const all = format.plural(replicas.length, 'replica');
  const names = (list) => (list.length > 3 ? `${list.slice(0, 3).join(', ')} and ${list.length - 3} more` : list.join(', '));
  const are = (list) => (list.length === 1 ? 'is' : 'are');
  const states = [];
  if (failing.length > 0) states.push(`${failing.length} of ${all} ${are(failing)} failing: ${names(failing)}`);
  if (recovering.length > 0) states.push(`${names(recovering)} ${are(recovering)} recovering`);
  if (paused.length > 0) states.push(`${names(paused)} ${are(paused)} paused`);
  const lacking = replicas.filter((replica) => replica.dead_letters > 0).length;
  const healthy = replicas.length === 1 ? 'The replica is healthy' : `All ${all} are healthy`;
  if (states.length === 0) states.push(lacking === 0 ? healthy : `${healthy}, but ${format.count(lacking)} ${lacking === 1 ? 'lacks' : 'lack'} writes`);
  const [title, ...rest] = states;
  if (backlog > 0) rest.push(`Backlog of ${format.plural(backlog, 'delivery', 'deliveries')}, the oldest ${format.duration(lag)} old`);
  else rest.push('No backlog');
  if (dead > 0) rest.push(format.plural(dead, 'dead letter'));
  const level = failing.length > 0 ? 'bad' : dead + recovering.length + paused.length > 0 ? 'warn' : 'good';
  return [level, title, `${rest.join('. ')}.`];
}

export class Overview {
  #history;
  #plots;
  #of = byId('plot-of');
  #window = byId('plot-window');
  #cursor = null;
  #name = '';

  constructor(history) {
    this.#history = history;
    const onCursor = (at) => {
      this.#cursor = at;
      this.drawPlots();
    };
    const redraw = () => this.drawPlots();
    const wholeSteps = (rough) => Math.max(1, niceStep(rough));
    const options = [
      {
        title: 'Throughput', step: niceStep, floor: 3, fold: 'mean', format: format.rate, axis: (n) => `${format.compact(n)}/s`,
        series: [
          { label: 'accepted', name: 'one', value: (figures) => figures.accepted_per_second, ofAll: true },
          { label: 'delivered', name: 'two', value: (figures) => figures.delivered_per_second },
          { label: 'failed attempts', name: 'three', value: (figures) => figures.failed_per_second },
        ],
      },
      {
        title: 'Backlog', step: wholeSteps, floor: 3, fold: 'max', format: format.count, axis: format.compact,
        series: [
          { label: 'backlog', name: 'one', value: (figures) => figures.backlog_tasks },
          { label: 'retrying', name: 'two', value: (figures) => figures.retry_tasks ?? figures.retrying },
          { label: 'dead letters', name: 'three', value: (figures) => figures.dead_letters },
        ],
      },
      {
        title: 'Lag', step: niceSeconds, floor: 1, fold: 'max', format: format.duration, axis: format.axisSeconds,
        series: [{ label: 'age of the oldest delivery', name: 'one', value: (figures) => figures.lag_seconds }],
      },
    ];
    const make = (option) => {
      const host = el('figure', { class: 'plot' });
      byId('plots').append(host);
      return new Plot(host, { ...option, redraw }, onCursor);
    };
    this.#plots = options.map(make);
    this.#of.addEventListener('change', redraw);
    this.#window.addEventListener('change', redraw);
  }

  /** The name of the instance, for the title. */
  named(name) {
    this.#name = name;
  }

  drawSummary(figures) {
    const [level, title, text] = judged(figures);
    setAttribute(byId('summary'), 'data-level', level);
    setText(byId('summary-icon'), LEVEL_ICONS[level]);
    setText(byId('summary-title'), title);
    setText(byId('summary-text'), text);
    byId('replicas-empty').hidden = figures.replicas.length > 0;
    const failing = figures.replicas.filter((replica) => replica.state === 'failing').length;
    const at = this.#name ? ` – ${this.#name}` : '';
    document.title = failing > 0 ? `▲ ${failing} failing – replicator${at}` : `replicator${at}`;
    const letters = byId('nav-letters');
    letters.hidden = figures.dead_letters === 0;
    setText(letters, format.count(figures.dead_letters));
  }

  drawPlots() {
    const last = this.#history.last;
    if (!last || byId('view-overview').hidden) return;
    const seconds = Number(this.#window.value);
    const to = last.at;
    const from = to - seconds * 1000;
    const of = this.#of.value;
    const points = this.#history.since(from, of);
    for (const plot of this.#plots) plot.draw(points, from, to, this.#cursor, of !== '');
  }

  happened({ at, replica, change, detail }) {
    const name = format.node(replica);
    const what = format.word(change);
    const bad = change === 'failing';
    const icon = iconOf(change) ?? '·';
    const list = byId('events');
    const text = detail ? `${name} ${what}: ${detail}` : `${name} ${what}`;
    list.prepend(el('li', { 'data-level': bad ? 'bad' : 'good' },
      el('time', { datetime: at, title: at }, format.moment(at)), el('span', { class: 'icon', 'aria-hidden': 'true' }, icon), el('span', {}, text)));
    if (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
    list.hidden = false;
    byId('events-empty').hidden = true;
    announce(text);
  }
}
