// A paged list with a filter.

import { page, query } from './api.js';
import { byId, el, fill, filled, setText } from './dom.js';
import * as format from './format.js';

export const PAGE = 50;

export class Pages {
  #options;
  #filter = {};
  /** The cursors of the visited pages; the last one is the current page. */
  #cursors = [null];
  #turn = 0;

  /**
   * `path` is the API path and `name` its list field; `route` is the view in the hash; `form`, `note`,
   * `table` and `pages` are element ids; `draw(items)` fills the table; `empty(filter)` is the text of
   * an empty list.
   */
  constructor(options) {
    this.#options = options;
    const form = byId(options.form);
    const go = (values) => {
      const hash = `#/${options.route}${query(values)}`;
      if (location.hash === hash) this.show(values);
      else location.hash = hash;
    };
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      go(filled(form));
    });
    form.addEventListener('reset', (event) => {
      event.preventDefault();
      go({});
    });
  }

  get filter() {
    return this.#filter;
  }

  show(filter) {
    this.#filter = filter;
    this.#cursors = [null];
    fill(byId(this.#options.form), filter);
    return this.load();
  }

  async load() {
    const { path, name, note, table, draw, empty } = this.#options;
    this.#turn += 1;
    const turn = this.#turn;
    const say = (text) => setText(byId(note), text);
    if (byId(table).hidden) say('Loading…');
    let found;
    try {
      found = await page(path, name, this.#filter, PAGE, this.#cursors.at(-1));
    } catch (error) {
      if (turn !== this.#turn) return;
      byId(table).hidden = true;
      byId(this.#options.pages).replaceChildren();
      draw([]);
      say(`Cannot load the list: ${error.message}`);
      return;
    }
    // Another load has started in the meantime.
    if (turn !== this.#turn) return;
    const { items, next, incomplete } = found;
    const tell = (text) => say([text, format.lack(incomplete)].filter(Boolean).join(' '));
    byId(table).hidden = items.length === 0;
    draw(items);
    const first = this.#cursors.length === 1;
    if (items.length > 0) tell(first && !next ? `${items.length} in total.` : `Page ${this.#cursors.length}, ${items.length} entries.`);
    else if (next) tell('No match so far. Choose Next to search further.');
    else if (incomplete.length > 0) tell('Nothing found.');
    else say(first ? empty(this.#filter) : 'No more entries.');
    this.#drawPages(next);
  }

  #drawPages(next) {
    const buttons = [];
    const button = (text, turned) => el('button', { type: 'button', onclick: () => {
      turned();
      this.load().then(() => byId(this.#options.note).scrollIntoView({ block: 'nearest' }));
    } }, text);
    if (this.#cursors.length > 1) buttons.push(button('Previous', () => this.#cursors.pop()));
    if (next) buttons.push(button('Next', () => this.#cursors.push(next)));
    byId(this.#options.pages).replaceChildren(...buttons);
  }
}
