// The list of tasks, and the view of one task.

import { get, remove } from './api.js';
import { act, confirm } from './dialogs.js';
import { byId, cell, el, keyed, setAttribute, setText, twoLines } from './dom.js';
import * as format from './format.js';
import { one } from './letters.js';
import { Pages } from './pages.js';

const KEPT_EVENTS = 200;
const SETTLED = ['delivered', 'superseded', 'discarded'];

export class Tasks {
  #pages = new Pages({
    path: 'v1/tasks', name: 'tasks', route: 'tasks', form: 'task-filter',
    note: 'tasks-note', table: 'tasks', pages: 'tasks-pages',
    draw: (items) => keyed(byId('tasks').tBodies[0], items, (task) => task.task_id, taskRow, updateTaskRow),
    empty: (filter) => (Object.keys(filter).length > 0 ? 'No unsettled task matches this filter.' : 'Every task is settled.'),
  });

  constructor() {
    const form = byId('find-task');
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      location.hash = `#/task/${encodeURIComponent(form.elements.id.value.trim())}`;
    });
  }

  show(filter) {
    return this.#pages.show(filter);
  }
}

function taskRow(task) {
  const { task_id: id } = task;
  return el('tr', {},
    cell('Task', { class: 'task' }, el('a', { href: `#/task/${id}` }, id)),
    cell('Key', { class: 'name' }, el('code', {}, task.key ?? '–')),
    cell('Write', { class: 'nowrap' }, task.operation ? format.write(task.operation, task.value_bytes ?? 0) : '–'),
    cell('Accepted', { class: 'nowrap' }, task.accepted_at ? el('time', { datetime: task.accepted_at, title: task.accepted_at }, format.moment(task.accepted_at)) : '–'),
    cell('User', { class: 'name' }, task.user_id ?? '–'),
    cell('Deliveries', { class: 'chips' }));
}

function updateTaskRow(row, { deliveries }) {
  const chip = ({ replica, state }) => el('span', { class: 'chip', 'data-state': state }, `${format.node(replica)} ${format.word(state)}`);
  row.lastElementChild.replaceChildren(...deliveries.map(chip));
}

export class Story {
  #id = null;
  #task = null;
  #stale = null;

  constructor() {
    const button = byId('story-discard');
    button.addEventListener('click', () => act(button, 'Not discarded', async () => {
      const text = 'Pending deliveries are discarded. A delivery in flight is not retried. This cannot be undone.';
      if (!await confirm({ title: 'Discard this task?', text: { go: true, text }, yes: 'Discard', danger: true })) return null;
      this.#draw(await remove(`v1/tasks/${this.#id}`));
      return 'The task is discarded.';
    }));
  }

  get open() {
    return this.#id !== null;
  }

  async show(id) {
    this.#id = id;
    this.#task = null;
    setText(byId('story-title'), `Task ${id}`);
    setText(byId('story-note'), 'Loading…');
    byId('story').hidden = true;
    byId('story-events').replaceChildren();
    byId('story-events').hidden = true;
    byId('story-quiet').hidden = false;
    await this.load();
  }

  close() {
    this.#id = null;
  }

  async load() {
    const id = this.#id;
    try {
      const task = await get(`v1/tasks/${encodeURIComponent(id)}`);
      if (id === this.#id) this.#draw(task);
    } catch (error) {
      if (id !== this.#id) return;
      const gone = error.status === 404 && this.#task !== null;
      if (gone) setText(byId('story-note'), 'The task is settled and no longer remembered. Its last known state is shown.');
      else setText(byId('story-note'), error.status === 404 ? 'No task has this id, or it is settled and no longer remembered.' : `Cannot load the task: ${error.message}`);
      if (gone) byId('story-discard').hidden = true;
    }
  }

  /** Updates ages and countdowns between two loads. */
  tick() {
    if (this.#task && this.open) this.#draw(this.#task);
  }

  happened(event) {
    if (event.task_id !== this.#id) return;
    const { at, replica, change, error } = event;
    const list = byId('story-events');
    const bad = change === 'failed' || change === 'dead';
    const what = [replica && format.node(replica), change === 'failed' ? 'attempt failed' : format.word(change)].filter(Boolean).join(': ');
    list.prepend(el('li', { 'data-level': bad ? 'bad' : 'good' },
      el('time', { datetime: at, title: at }, format.moment(at)), el('span', {}, error ? `${what}: ${error}` : what)));
    if (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
    list.hidden = false;
    byId('story-quiet').hidden = true;
    this.refresh();
  }

  /** Reloads soon, once for many events. */
  refresh() {
    if (!this.open || this.#stale) return;
    this.#stale = setTimeout(() => {
      this.#stale = null;
      if (this.open) this.load();
    }, 200);
  }

  #draw(task) {
    this.#task = task;
    const settled = task.settled_at ? `Settled ${format.agoText(task.settled_at)}.` : '';
    setText(byId('story-note'), [settled, format.lack(task.incomplete)].filter(Boolean).join(' '));
    byId('story').hidden = false;
    byId('story-discard').hidden = task.deliveries.every(({ state }) => SETTLED.includes(state));
    const when = (at) => (at ? `${at} (${Date.parse(at) > format.now() ? format.inText(at) : format.agoText(at)})` : '–');
    const facts = [
      ['Key', task.key ?? 'not remembered'],
      ['Write', task.operation ? format.write(task.operation, task.value_bytes ?? 0) : '–'],
      ['Accepted', when(task.accepted_at)],
      ['Expires', task.expires_at ? when(task.expires_at) : 'never'],
      ['Consistency', task.consistency ?? '–'],
      ['User', task.user_id ?? '–'],
    ];
    const fact = ([name]) => el('div', {}, el('dt', {}, name), el('dd'));
    keyed(byId('story-facts'), facts, ([name]) => name, fact, (node, [, value]) => setText(node.lastElementChild, value));
    keyed(byId('deliveries').tBodies[0], task.deliveries, (delivery) => delivery.replica, (delivery) => this.#row(delivery), updateDelivery);
    this.#drawAttempts(task.deliveries);
  }

  #drawAttempts(deliveries) {
    const of = ({ replica, attempts = [] }) => attempts.map((attempt) => ({ replica, ...attempt }));
    const attempts = deliveries.flatMap(of).sort((a, b) => Date.parse(b.ended_at) - Date.parse(a.ended_at));
    byId('attempts-box').hidden = attempts.length === 0;
    keyed(byId('attempts').tBodies[0], attempts, ({ replica, ended_at: at }) => `${at} ${replica}`, attemptRow);
  }

  #row({ replica }) {
    const cells = {
      state: twoLines('State', { class: 'state' }),
      failures: cell('Failed attempts', { class: 'number' }),
      next: cell('Next attempt', { class: 'nowrap' }),
      error: twoLines('Last error', { class: 'error' }),
    };
    const button = (kind, words) => {
      const node = el('button', { type: 'button', class: kind === 'discard' ? 'danger' : null, 'aria-label': `${words} for ${format.node(replica)}` }, words);
      node.addEventListener('click', () => act(node, `${words} failed`, async () => {
        const result = await one(kind, this.#id, replica);
        this.refresh();
        return result;
      }));
      return node;
    };
    const actions = el('div', { class: 'actions' }, button('redrive', 'Redrive'), button('discard', 'Discard'));
    const row = el('tr', {}, cell('Replica', { class: 'name' }, format.node(replica)), ...Object.values(cells), cell('', { class: 'buttons' }, actions));
    Object.assign(row, { cells_: cells, actions });
    return row;
  }
}

function attemptRow({ replica, ended_at: at, duration_seconds: seconds, error }) {
  return el('tr', { 'data-state': error === null ? 'delivered' : 'dead' },
    cell('Ended', { class: 'nowrap' }, el('time', { datetime: at, title: at }, format.moment(at))),
    cell('Replica', { class: 'name' }, format.node(replica)),
    cell('Result', { class: 'state' }, el('span', { class: 'main' }, error === null ? '✓ acknowledged' : '▲ failed')),
    cell('Took', { class: 'number' }, format.duration(seconds)),
    cell('Error', { class: 'error', 'data-none': error === null }, error ?? '–'));
}

const DELIVERY_ICONS = { delivered: '✓', dead: '▲', superseded: '–', discarded: '–', in_flight: '→', retrying: '↻', parked: '❚❚', queued: '·' };

function updateDelivery(row, delivery) {
  const { cells_: cells, actions } = row;
  const { state, failures, next_attempt_at: next, last_error: error, last_failed_at: failedAt, cause } = delivery;
  setAttribute(row, 'data-state', state);
  cells.state.say(`${DELIVERY_ICONS[state] ?? ''} ${format.word(state)}`, cause ? format.word(cause) : '');
  setText(cells.failures, format.count(failures));
  setText(cells.next, next ? format.inText(next) : '–');
  cells.error.say(error ?? '–', failedAt ? format.agoText(failedAt) : '');
  actions.hidden = state !== 'dead' && state !== 'parked';
}
