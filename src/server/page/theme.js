// The color theme: light, dark or system.

const KEY = 'replicator-theme';
const THEMES = ['system', 'light', 'dark'];

function remembered() {
  try {
    const theme = localStorage.getItem(KEY);
    return THEMES.includes(theme) ? theme : 'system';
  } catch {
    // Storage may be blocked. The choice then lasts until the page is closed.
    return 'system';
  }
}

/** Makes `button` cycle through the themes and stores the choice in the browser. */
export function followTheme(button) {
  let theme = remembered();
  const show = () => {
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener('click', () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Storage may be blocked.
    }
    show();
  });
  show();
}
