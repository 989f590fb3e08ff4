// The first view: one sentence on how things are, the replicas, the plots, what happened.

import { announce } from './dialogs.js';
import { byId, el, setAttribute, setText } from './dom.js';
import * as format from './format.js';
import { Plot, niceSeconds, niceStep } from './plot.js';
import { iconOf, stateOf } from './replicas.js';

const KEPT_EVENTS = 100;
const LEVEL_ICONS = { good: '✓', warn: '!', bad: '▲', idle: '–' };

/** How bad it is, what comes first, and what else there is to say. */
export function judged(figures) {
  const { replicas, backlog_tasks: backlog, dead_letters: dead, lag_seconds: lag } = figures;
  if (replicas.length === 0) return ['idle', 'Nothing to do yet', 'Nothing was accepted since the start, and nothing was found on disk.'];
  const named = (state) => replicas.filter((replica) => stateOf(replica) === state).map((replica) => format.node(replica.replica));
  const [down, back, paused] = ['down', 'coming back', 'paused'].map(named);
  const all = format.plural(replicas.length, 'replica');
  const names = (list) => (list.length > 3 ? `${list.slice(0, 3).join(', ')} and ${list.length - 3} more` : list.join(', '));
  const are = (list) => (list.length === 1 ? 'is' : 'are');
  const states = [];
  if (down.length > 0) states.push(`${down.length} of ${all} ${are(down)} down: ${names(down)}`);
  if (back.length > 0) states.push(`${names(back)} ${are(back)} coming back`);
  if (paused.length > 0) states.push(`${names(paused)} ${are(paused)} paused`);
  if (states.length === 0) states.push(replicas.length === 1 ? 'The replica is up' : `All ${all} are up`);
  const [title, ...rest] = states;
  if (backlog > 0) rest.push(`${format.plural(backlog, 'delivery waits', 'deliveries wait')}, the oldest for ${format.duration(lag)}`);
  else rest.push('Nothing waits');
  if (dead > 0) rest.push(format.plural(dead, 'dead letter'));
  const level = down.length > 0 ? 'bad' : dead + back.length + paused.length > 0 ? 'warn' : 'good';
  return [level, title, `${rest.join('. ')}.`];
}

export class Overview {
  #history;
  #plots;
  #of = byId('plot-of');
  #window = byId('plot-window');
  #cursor = null;

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
        title: 'Throughput', step: niceStep, floor: 3, fold: 'mean', tell: format.rate, axis: (n) => `${format.compact(n)}/s`,
        series: [
          { label: 'accepted', name: 'one', value: (figures) => figures.accepted_per_second, ofAll: true },
          { label: 'delivered', name: 'two', value: (figures) => figures.delivered_per_second },
          { label: 'failed attempts', name: 'three', value: (figures) => figures.failed_per_second },
        ],
      },
      {
        title: 'Waiting', step: wholeSteps, floor: 3, fold: 'max', tell: format.count, axis: format.compact,
        series: [
          { label: 'backlog', name: 'one', value: (figures) => figures.backlog_tasks },
          { label: 'retrying', name: 'two', value: (figures) => figures.retry_tasks ?? figures.retrying },
          { label: 'dead letters', name: 'three', value: (figures) => figures.dead_letters },
        ],
      },
      {
        title: 'Lag', step: niceSeconds, floor: 1, fold: 'max', tell: format.duration, axis: format.duration,
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

  drawSummary(figures) {
    const [level, title, text] = judged(figures);
    setAttribute(byId('summary'), 'data-level', level);
    setText(byId('summary-icon'), LEVEL_ICONS[level]);
    setText(byId('summary-title'), title);
    setText(byId('summary-text'), text);
    byId('replicas-empty').hidden = figures.replicas.length > 0;
    const down = figures.replicas.filter((replica) => stateOf(replica) === 'down').length;
    document.title = down > 0 ? `▲ ${down} down – replicator` : 'replicator';
    const letters = byId('nav-letters');
    letters.hidden = figures.dead_letters === 0;
    setText(letters, format.count(figures.dead_letters));
  }

  /** Draws nothing while nobody can see it. */
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

  /** Puts an event of a replica on top of the list, and says it to who cannot see it. */
  happened({ at, replica, change, detail }) {
    const name = format.node(replica);
    const what = format.word(change);
    const bad = change === 'breaker_opened';
    const icon = bad ? iconOf('down') : change === 'breaker_closed' ? iconOf('up') : change === 'paused' ? iconOf('paused') : '·';
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
