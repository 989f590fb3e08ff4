// Dead letters: found, redriven, thrown away; one, or all that a filter selects.

import { post } from './api.js';
import { act, confirm, notice } from './dialogs.js';
import { byId, cell, el, keyed, setText } from './dom.js';
import * as format from './format.js';
import { finished, Operations } from './operations.js';
import { Pages } from './pages.js';

const VERBS = {
  redrive: { title: 'Redrive', past: 'made ready again', yes: 'Redrive' },
  discard: { title: 'Discard', past: 'thrown away', yes: 'Discard' },
};

/** Why not all of them, where that is so. */
function without({ superseded, held_back: held }) {
  const newer = superseded > 0 ? `, ${format.count(superseded)} left out as a newer write of the key is on its way` : '';
  const back = held > 0 ? `, ${format.count(held)} left out as the replica is paused or does not answer, or the retry queue is full` : '';
  return newer + back;
}

/** What came of an operation, in a sentence. */
export function outcome({ kind, state, done, error, ...counts }) {
  const text = `${format.plural(done, 'dead letter')} ${VERBS[kind].past}`;
  const left = without(counts);
  const end = { cancelled: 'Cancelled: ', failed: 'Failed: ' }[state] ?? '';
  return `${end}${text}${left}${error ? `: ${error}` : ''}.`;
}

/** Redrives or discards one delivery's dead letter, and says what came of it. */
export async function one(kind, taskId, replica) {
  const ids = [{ task_id: taskId, replica }];
  if (kind === 'discard') {
    const text = `The write never reaches ${format.node(replica)}, unless a newer one of its key does. This cannot be undone.`;
    const sure = await confirm({ title: 'Discard this dead letter?', text: { go: true, text }, yes: 'Discard', danger: true });
    if (!sure) return null;
  }
  return outcome(await finished(await post(`v1/dead-letters/${kind}`, { ids })));
}

export class Letters {
  #pages;
  #operations;
  #stale = null;

  constructor() {
    this.#operations = new Operations((operation) => {
      notice(outcome(operation), operation.state === 'failed' ? 'bad' : 'good');
      this.#pages.load();
    });
    this.#pages = new Pages({
      path: 'v1/dead-letters', name: 'dead_letters', route: 'dead-letters', form: 'letter-filter',
      note: 'letters-note', table: 'letters', pages: 'letters-pages',
      draw: (items) => this.#draw(items),
      empty: (filter) => (Object.keys(filter).length > 0 ? 'No dead letter matches this filter.' : 'No dead letters. Nothing was given up.'),
    });
    for (const kind of ['redrive', 'discard']) {
      byId(`${kind}-all`).addEventListener('click', (event) => this.#all(kind, event.currentTarget));
    }
  }

  show(filter) {
    this.#operations.watch();
    return this.#pages.show(filter);
  }

  /** The number of dead letters has changed: look again, but not for each of them. */
  changed() {
    if (byId('view-letters').hidden || this.#stale) return;
    this.#stale = setTimeout(() => {
      this.#stale = null;
      this.#pages.load();
    }, 1000);
  }

  #draw(items) {
    const filtered = Object.keys(this.#pages.filter).length > 0;
    for (const kind of ['redrive', 'discard']) {
      const button = byId(`${kind}-all`);
      button.hidden = items.length === 0;
      setText(button, `${VERBS[kind].title} all${filtered ? ' that match' : ''}…`);
    }
    keyed(byId('letters').tBodies[0], items, (letter) => `${letter.task_id} ${letter.replica}`, (letter) => this.#row(letter));
  }

  #row(letter) {
    const { task_id: task, replica, key } = letter;
    const button = (kind, words) => {
      const label = `${words} ${key} for ${format.node(replica)}`;
      const node = el('button', { type: 'button', class: kind === 'discard' ? 'danger' : null, 'aria-label': label }, words);
      node.addEventListener('click', () => act(node, `${words} failed`, async () => {
        const said = await one(kind, task, replica);
        if (said) await this.#pages.load();
        return said;
      }));
      return node;
    };
    return el('tr', {},
      cell('Key', { class: 'name' }, el('code', {}, key)),
      cell('Replica', { class: 'name' }, format.node(replica)),
      cell('Write', { class: 'nowrap' }, format.write(letter.operation, letter.value_bytes)),
      cell('Cause', {}, format.word(letter.cause), el('span', { class: 'sub nowrap' }, `after ${format.plural(letter.failures, 'failure')}`)),
      cell('Last error', { class: 'error' }, letter.last_error),
      cell('Since', { class: 'nowrap' }, el('time', { datetime: letter.since, title: letter.since }, format.moment(letter.since))),
      cell('Task', { class: 'task' }, el('a', { href: `#/task/${task}` }, task)),
      cell('', { class: 'buttons' }, el('div', { class: 'actions' }, button('redrive', 'Redrive'), button('discard', 'Discard'))));
  }

  async #all(kind, button) {
    const filter = this.#pages.filter;
    const selection = Object.keys(filter).length > 0 ? filter : { all: true };
    const { title, yes } = VERBS[kind];
    const answer = await confirm({
      title: `${title} ${selection.all ? 'all dead letters' : 'all that match the filter'}?`,
      text: counted(kind, selection), yes, danger: kind === 'discard', typed: kind === 'discard' ? kind : null, rated: kind === 'redrive',
    });
    if (!answer) return;
    await act(button, `${title} failed`, async () => {
      const body = { ...selection };
      if (answer.rate !== null) body.rate = answer.rate;
      this.#operations.follow(await post(`v1/dead-letters/${kind}`, body));
    });
  }
}

/** Asks the daemon how many it would be, and says it with what it would mean. */
async function counted(kind, selection) {
  const { done, error, ...counts } = await finished(await post(`v1/dead-letters/${kind}`, { ...selection, dry_run: true }));
  if (error) throw new Error(error);
  const left = without(counts);
  if (done === 0) return { go: false, text: `There is none to ${kind}${left}.` };
  const them = format.plural(done, 'dead letter');
  const means = kind === 'redrive'
    ? `${them} would be made ready again and sent as their replicas take them${left}.`
    : `${them} would be thrown away${left}: these writes never reach their replicas. This cannot be undone.`;
  return { go: true, text: means };
}
