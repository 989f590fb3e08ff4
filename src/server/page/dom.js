// The few helpers that stand between the page and its elements.

import { plain } from './plain.js';

/** Attributes that people read. */
const READ = ['title', 'aria-label'];

const shown = (child) => (typeof child === 'string' ? plain(child) : child);

/**
 * Makes an element. Whatever is a string goes in as text, never as markup: keys and errors come
 * from outside. What cannot be seen in it is escaped.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else setAttribute(node, name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map(shown));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Sets the text only where it differs, so that what is selected or read aloud is left alone. */
export function setText(node, raw) {
  const text = shown(raw);
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, raw) {
  const value = READ.includes(name) ? shown(raw) : raw;
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * Makes the children of `parent` follow `items`. A child lives as long as its key does, so that
 * focus and selection survive an update.
 */
export function keyed(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = old.get(key);
    if (!child) {
      child = make(item);
      child.dataset.key = key;
    }
    old.delete(key);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update?.(child, item);
  }
  for (const child of old.values()) child.remove();
}

/** A cell with its label, which stands before it where the table is shown as cards. */
export function cell(label, attributes = {}, ...children) {
  return el('td', { 'data-label': label, ...attributes }, ...children);
}

/** A cell of two lines: what counts, and what explains it. */
export function twoLines(label, attributes = {}) {
  const main = el('span', { class: 'main' });
  const sub = el('span', { class: 'sub' });
  const node = cell(label, attributes, el('div', {}, main, sub));
  node.say = (text, note = '') => {
    setText(main, text);
    setText(sub, note);
  };
  node.main = main;
  return node;
}

/** The values of a form that are not empty. */
export function filled(form) {
  const values = [...new FormData(form)].map(([name, value]) => [name, value.trim()]);
  return Object.fromEntries(values.filter(([, value]) => value !== ''));
}

/** Puts values into a form, and empties what has none. */
export function fill(form, values) {
  for (const field of form.elements) {
    if (!field.name) continue;
    const value = values[field.name] ?? '';
    // A replica that a link names may not be known here yet.
    if (field.tagName === 'SELECT' && ![...field.options].some((o) => o.value === value)) {
      field.append(new Option(plain(value), value));
    }
    field.value = value;
  }
}
