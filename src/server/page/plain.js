// Text from outside as it may be shown: the rule of `src/text.rs`.

const odd = /[\p{C}\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;
const short = { '\n': '\\n', '\r': '\\r', '\t': '\\t' };

/** What turns the direction of writing, cannot be seen or is no character is shown as an escape. */
export const plain = (text) => text.replace(odd, (c) => short[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`);
