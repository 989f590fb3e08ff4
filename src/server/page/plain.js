// Escapes untrusted text for display, by the same rule as `src/text.rs`.

const odd = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;
const short = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

/** Escapes bidirectional controls, invisible characters and non-characters. */
export const plain = (text) => text.replace(odd, (c) => short[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`);
