// The table of replicas, and their actions: pause, resume, probe, rename, forget.

import { get, post } from './api.js';
import { act, confirm, notice } from './dialogs.js';
import { byId, cell, el, keyed, setAttribute, setText, twoLines } from './dom.js';
import * as format from './format.js';

const ICONS = { healthy: '●', paused: '❚❚', failing: '▲', recovering: '◐' };
export const iconOf = (state) => ICONS[state];

const WORST_FIRST = ['failing', 'recovering', 'paused'];
const TROUBLES = WORST_FIRST.length;

/** Sorts by state, the worst first, then those with dead letters, then by the size of the backlog. */
export function inOrder(replicas) {
  const rank = ({ state, dead_letters: dead, backlog_tasks: backlog }) => {
    const trouble = WORST_FIRST.indexOf(state);
    // By its order of magnitude, so that rows do not change places every second.
    const size = -Math.floor(Math.log10(backlog + 1));
    return trouble >= 0 ? [trouble, size] : [TROUBLES + (dead > 0 ? 0 : 1), size];
  };
  const ranked = replicas.map((replica) => ({ replica, rank: rank(replica) }));
  ranked.sort((a, b) => a.rank[0] - b.rank[0] || a.rank[1] - b.rank[1] || (a.replica.replica < b.replica.replica ? -1 : 1));
  return ranked.map(({ replica }) => replica);
}

/** The details of `/v1/replicas`, updated with the figures of the last second. */
export function merged(replica, figures) {
  const { state, backlog_tasks, lag_seconds, in_flight, retrying } = figures ?? { ...replica, retrying: replica.retrying + replica.parked };
  return { ...replica, state, backlog_tasks, lag_seconds, in_flight, retrying };
}

export class Replicas {
  #body = byId('replicas').tBodies[0];
  #changed;

  /** Calls `changed(replica)` with the response to an action. */
  constructor(changed) {
    this.#changed = changed;
  }

  draw(replicas) {
    byId('replicas').hidden = replicas.length === 0;
    keyed(this.#body, replicas, (replica) => replica.replica, (replica) => this.#row(replica), update);
  }

  #row({ replica }) {
    const cells = {
      name: twoLines('Replica', { class: 'name' }),
      state: twoLines('State', { class: 'state' }),
      backlog: twoLines('Backlog', { class: 'number wide' }),
      lag: twoLines('Lag', { class: 'number' }),
      flight: twoLines('In flight', { class: 'number' }),
      rates: twoLines('In / out', { class: 'number' }),
      latency: twoLines('Latency', { class: 'number' }),
      letters: twoLines('Dead letters', { class: 'number' }),
      error: twoLines('Last error', { class: 'error' }),
    };
    const name = format.node(replica);
    const path = `v1/replicas/${encodeURIComponent(replica)}`;
    const pause = el('button', { type: 'button' });
    pause.addEventListener('click', () => act(pause, `${name} is unchanged`, async () => {
      const verb = pause.dataset.verb;
      const now = await post(`${path}/${verb}`);
      this.#changed(now);
      return reportChange(verb === 'pause'
        ? `${name} is paused. Nothing is sent to it until it is resumed.`
        : `${name} is resumed.`, now);
    }));
    const probe = el('button', { type: 'button', 'aria-label': `Probe ${name} now` }, 'Probe');
    probe.addEventListener('click', () => act(probe, `${name} was not probed`, async () => {
      const { probing, reason, incomplete } = await post(`${path}/probe`);
      this.#changed(null);
      return reportChange(probing ? `A probe is being sent to ${name}.` : `No probe for ${name}: ${reason}`, { incomplete });
    }));
    const rename = el('button', { type: 'button', 'aria-label': `Rename ${name}` }, 'Rename');
    rename.addEventListener('click', () => act(rename, `${name} keeps its address`, async () => {
      const text = `Pending deliveries for ${name}, and writes that still name it, go to the new address. The new address must not have been used as a replica before.`;
      const answer = await confirm({ title: `Change the address of ${name}?`, text: { go: true, text }, yes: 'Rename', named: true });
      if (!answer) return undefined;
      const now = await post(`${path}/rename`, { to: answer.to });
      this.#changed(null);
      return reportChange(`${name} is now ${format.node(now.replica)}.`, now);
    }));
    const forget = el('button', { type: 'button', class: 'danger', 'aria-label': `Forget ${name}` }, 'Forget');
    forget.addEventListener('click', () => act(forget, `${name} was not forgotten`, async () => {
      const answer = await confirm({ title: `Forget ${name}?`, text: forgetText(path), yes: 'Forget', danger: true, typed: 'forget' });
      if (!answer) return undefined;
      const { discarded, incomplete } = await post(`${path}/forget`);
      this.#changed(null);
      return reportChange(`${name} is forgotten: ${format.plural(discarded, 'delivery', 'deliveries')} discarded.`, { incomplete });
    }));
    const buttons = el('div', { class: 'actions' }, pause, probe, rename, forget);
    const row = el('tr', {}, ...Object.values(cells), cell('', { class: 'buttons' }, buttons));
    row.cells_ = cells;
    row.pause = pause;
    row.probe = probe;
    row.whenNotHealthy = [rename, forget];
    return row;
  }
}

/** The result of an action. One that does not hold for the whole cluster is shown as a problem. */
function reportChange(text, { incomplete, unconfirmed = [] }) {
  const names = unconfirmed.join(', ');
  const late = names && `Not confirmed by ${names}, which may still act as before.`;
  const missing = [late, format.lack(incomplete)].filter(Boolean);
  if (missing.length === 0) return text;
  notice([text, ...missing].join(' '), 'bad');
  return undefined;
}

async function forgetText(path) {
  const { backlog_tasks: backlog, dead_letters: dead, incomplete } = await get(path);
  const them = `${format.plural(backlog, 'task')} and ${format.plural(dead, 'dead letter')}`;
  return { go: true, text: `${them} would be discarded and never reach it. This cannot be undone. ${format.lack(incomplete)}` };
}

/** A number that links to its list, or plain text if `href` is `null`. */
function link(cell, text, href, label) {
  if (href === null) return cell.say(text);
  let anchor = cell.main.querySelector('a');
  if (!anchor) {
    anchor = el('a');
    cell.main.replaceChildren(anchor);
  }
  setText(anchor, text);
  setAttribute(anchor, 'href', href);
  setAttribute(anchor, 'aria-label', label);
  return undefined;
}

function update(row, replica) {
  const { cells_: cells, pause, probe, whenNotHealthy } = row;
  const name = format.node(replica.replica);
  const { state } = replica;
  setAttribute(row, 'data-state', state);
  setAttribute(row, 'data-letters', replica.dead_letters > 0 ? '' : null);
  const renamed = replica.renamed_from.map(format.node).join(', ');
  cells.name.say(name, renamed && `formerly ${renamed}`);
  cells.state.say(`${ICONS[state]} ${state}`, stateNote(replica, state));

  const of = encodeURIComponent(replica.replica);
  const waiting = replica.backlog_tasks > 0;
  link(cells.backlog, format.count(replica.backlog_tasks), waiting ? `#/tasks?replica=${of}` : null, `${replica.backlog_tasks} tasks for ${name}`);
  const backlog = [];
  if (replica.backlog_bytes > 0 && waiting) backlog.push(format.bytes(replica.backlog_bytes));
  if (replica.retrying > 0) backlog.push(`${format.count(replica.retrying)} retrying`);
  setText(cells.backlog.querySelector('.sub'), backlog.join(', '));

  cells.lag.say(waiting ? format.duration(replica.lag_seconds) : '0 s', drained(replica));
  cells.flight.say(format.count(replica.in_flight), `of ${format.count(replica.workers)}`);
  cells.rates.say(format.rate(replica.rate_in), `out ${format.rate(replica.rate_out)}${limitNote(replica.limits)}`);
  const { latency_p50_seconds: half, latency_p99_seconds: most } = replica;
  cells.latency.say(half === null ? '–' : format.duration(half), most === null ? '' : `p99 ${format.duration(most)}`);
  const dead = replica.dead_letters;
  link(cells.letters, format.count(dead), dead > 0 ? `#/dead-letters?replica=${of}` : null, `${dead} dead letters of ${name}`);
  setAttribute(cells.letters, 'data-some', dead > 0 ? '' : null);
  const error = replica.last_error;
  cells.error.say(error?.error ?? '–', error ? format.agoText(error.at) : '');
  setAttribute(cells.error, 'data-none', error ? null : '');

  const verb = state === 'paused' ? 'resume' : 'pause';
  pause.dataset.verb = verb;
  setText(pause, state === 'paused' ? 'Resume' : 'Pause');
  setAttribute(pause, 'aria-label', `${pause.textContent} ${name}`);
  probe.hidden = state !== 'failing';
  for (const button of whenNotHealthy) button.hidden = state === 'healthy';
}

function stateNote(replica, state) {
  const notes = [];
  if (replica.state_since) notes.push(format.forText(replica.state_since));
  if (replica.paused_until) notes.push(`ends ${format.inText(replica.paused_until)}`);
  if (state === 'healthy' && replica.dead_letters > 0) notes.push('lacks writes');
  if (state !== 'healthy' && typeof replica.outage_headroom_seconds === 'number') {
    notes.push(`writes refused in ${format.duration(replica.outage_headroom_seconds)} (${replica.outage_limit})`);
  }
  if (state === 'failing' && replica.next_probe_at) notes.push(`probe ${format.inText(replica.next_probe_at)}`);
  return notes.join(', ');
}

/** The rates that an operator has set, for the line under the rates. The workers are shown beside those in flight. */
function limitNote({ rate, bandwidth, redrive_rate: redrive } = {}) {
  const limits = [];
  if (rate) limits.push(`${format.count(rate)}/s`);
  if (bandwidth) limits.push(`${format.bytes(bandwidth)}/s`);
  if (redrive) limits.push(`${format.count(redrive)} redriven/s`);
  return limits.length > 0 ? `, limit ${limits.join(', ')}` : '';
}

/** Estimated time until the backlog is empty, from the rates of the last minute. */
function drained({ backlog_tasks: backlog, convergence, drained_in_seconds: seconds }) {
  if (backlog === 0) return '';
  if (convergence === 'draining') return seconds === null ? 'draining' : `drained in ${format.duration(Math.max(1, seconds))}`;
  return convergence === 'not_converging' ? 'not converging' : '';
}
