// The dead letters view: list, redrive, discard; one by one or all that match a filter.

import { get, post, query } from './api.js';
import { act, confirm, notice } from './dialogs.js';
import { byId, cell, el, keyed, setAttribute, setText } from './dom.js';
import * as format from './format.js';
import { fates, finished, Operations, settled } from './operations.js';
import { Pages } from './pages.js';

const VERBS = {
  redrive: { title: 'Redrive', past: 'redriven' },
  discard: { title: 'Discard', past: 'discarded' },
};

function skipped({ superseded, held_back: held }) {
  const newer = superseded > 0 ? `, ${format.count(superseded)} skipped because a newer write of the key is pending` : '';
  const back = held > 0 ? `, ${format.count(held)} skipped because the replica is paused or failing, or the retry queue is full` : '';
  return newer + back;
}

export function outcome({ kind, state, done, error, outcomes, incomplete, ...counts }) {
  const fate = fates(outcomes);
  const text = `${format.plural(done, 'dead letter')} ${VERBS[kind].past}${fate && `: ${fate}`}`;
  const left = skipped(counts);
  const end = { cancelled: 'Cancelled: ', failed: 'Failed: ' }[state] ?? '';
  return [`${end}${text}${left}${error ? `: ${error}` : ''}.`, format.lack(incomplete)].filter(Boolean).join(' ');
}

/** Redrives or discards one dead letter. Returns the result as a sentence. */
export async function one(kind, taskId, replica) {
  const ids = [{ task_id: taskId, replica }];
  if (kind === 'discard') {
    const text = `The write will never reach ${format.node(replica)}. This cannot be undone.`;
    const sure = await confirm({ title: 'Discard this dead letter?', text: { go: true, text }, yes: 'Discard', danger: true });
    if (!sure) return null;
  }
  return outcome(await settled(await finished(await post(`v1/dead-letters/${kind}`, { ids }))));
}

export class Letters {
  #pages;
  #operations;
  #stale = null;

  constructor() {
    this.#operations = new Operations((operation) => {
      notice(outcome(operation), operation.state === 'failed' || operation.incomplete || operation.outcomes?.failed > 0 ? 'bad' : 'good');
      this.#pages.load();
    });
    this.#pages = new Pages({
      path: 'v1/dead-letters', name: 'dead_letters', route: 'dead-letters', form: 'letter-filter',
      note: 'letters-note', table: 'letters', pages: 'letters-pages',
      draw: (items) => this.#draw(items),
      empty: (filter) => (Object.keys(filter).length > 0 ? 'No dead letter matches this filter.' : 'No dead letters.'),
    });
    for (const kind of ['redrive', 'discard']) {
      byId(`${kind}-all`).addEventListener('click', (event) => this.#all(kind, event.currentTarget));
    }
  }

  show(filter) {
    this.#operations.watch();
    this.#summarize();
    return this.#pages.show(filter);
  }

  /** Reloads the list after a change, at most once per second. */
  changed() {
    if (byId('view-letters').hidden || this.#stale) return;
    this.#stale = setTimeout(() => {
      this.#stale = null;
      this.#pages.load();
      this.#summarize();
    }, 1000);
  }

  async #summarize() {
    let summary;
    try {
      summary = await get('v1/dead-letters/summary');
    } catch {
      // The list shows the same error.
      return;
    }
    const { groups, other, incomplete } = summary;
    const lack = format.lack(incomplete);
    byId('letter-groups-box').hidden = groups.length === 0 && lack === '';
    const kind = ({ replica, cause, error }) => JSON.stringify([replica, cause, error]);
    keyed(byId('letter-groups').tBodies[0], groups, kind, groupRow, updateGroup);
    const others = other > 0 ? `${format.plural(other, 'other dead letter')} of further kinds.` : '';
    setText(byId('letter-groups-other'), [others, lack].filter(Boolean).join(' '));
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
        const result = await one(kind, task, replica);
        if (result) await this.#pages.load();
        return result;
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
    const { title } = VERBS[kind];
    const answer = await confirm({
      title: `${title} ${selection.all ? 'all dead letters' : 'all that match the filter'}?`,
      text: counted(kind, selection), yes: title, danger: kind === 'discard', typed: kind === 'discard' ? kind : null, rated: kind === 'redrive',
    });
    if (!answer) return;
    await act(button, `${title} failed`, async () => {
      const body = { ...selection };
      if (answer.rate !== null) body.rate = answer.rate;
      this.#operations.follow(await post(`v1/dead-letters/${kind}`, body));
    });
  }
}

function groupRow({ replica, cause, error }) {
  const filter = query({ replica, cause });
  return el('tr', {},
    cell('Dead letters', { class: 'number' }, el('a', { href: `#/dead-letters${filter}` })),
    cell('Replica', { class: 'name' }, format.node(replica)),
    cell('Cause', {}, format.word(cause)),
    cell('Error', { class: 'error' }, error || '–'),
    cell('Oldest', { class: 'nowrap' }, el('time')),
    cell('Newest', { class: 'nowrap' }, el('time')));
}

function updateGroup(row, { replica, count, oldest, newest }) {
  const anchor = row.querySelector('a');
  setText(anchor, format.count(count));
  setAttribute(anchor, 'aria-label', `Show the ${format.plural(count, 'dead letter')} of ${format.node(replica)}`);
  [oldest, newest].forEach((at, n) => {
    const time = row.querySelectorAll('time')[n];
    setText(time, format.moment(at));
    setAttribute(time, 'datetime', at);
    setAttribute(time, 'title', at);
  });
}

/** Counts the selected dead letters with a dry run. Returns the text of the confirmation. */
async function counted(kind, selection) {
  const { done, error, incomplete, ...counts } = await finished(await post(`v1/dead-letters/${kind}`, { ...selection, dry_run: true }));
  if (error) throw new Error(error);
  const left = skipped(counts);
  const lack = incomplete ? ` ${format.lack(incomplete)}` : '';
  if (done === 0) return { go: false, text: `No dead letters to ${kind}${left}.${lack}` };
  const them = format.plural(done, 'dead letter');
  const means = kind === 'redrive'
    ? `${them} would be redriven${left}.${lack}`
    : `${them} would be discarded${left}: these writes will never reach their replicas. This cannot be undone.${lack}`;
  return { go: true, text: means };
}
