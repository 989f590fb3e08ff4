// DOM helpers.

import { plain } from './plain.js';

/** Attributes with text for people. */
const READ = ['title', 'aria-label'];

const shown = (child) => (typeof child === 'string' ? plain(child) : child);

/**
 * Creates an element. Strings become text, never markup, because keys and errors come from outside.
 * Invisible characters are escaped.
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

/** Sets the text only if it differs, to keep selections and screen readers undisturbed. */
export function setText(node, raw) {
  const text = shown(raw);
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, raw) {
  const value = READ.includes(name) ? shown(raw) : raw;
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Synchronizes the children of `parent` with `items` by key, so that focus and selection survive. */
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

/** A cell with a label, shown in front of it if the table is laid out as cards. */
export function cell(label, attributes = {}, ...children) {
  return el('td', { 'data-label': label, ...attributes }, ...children);
}

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

export function filled(form) {
  const values = [...new FormData(form)].map(([name, value]) => [name, value.trim()]);
  return Object.fromEntries(values.filter(([, value]) => value !== ''));
}

export function fill(form, values) {
  for (const field of form.elements) {
    if (!field.name) continue;
    const value = values[field.name] ?? '';
    // The replica of a link may not be in the list yet.
    if (field.tagName === 'SELECT' && ![...field.options].some((o) => o.value === value)) {
      field.append(new Option(plain(value), value));
    }
    field.value = value;
  }
}
