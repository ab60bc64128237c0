// Evaluates to a list of what is wrong with the page as it is drawn now, in words.
(() => {
  const faults = [];
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const words = (element) => (element.textContent || '').trim().replace(/\s+/g, ' ').slice(0, 40);

  // the page fits, and what does not fit scrolls in a place of its own
  const width = document.documentElement.clientWidth;
  const across = document.documentElement.scrollWidth;
  if (across > width) faults.push(`the page is ${across} px wide, ${width} fit`);
  for (const element of all('body *')) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !element.closest('.scroll, pre, svg')) {
      faults.push(`${element.tagName} "${words(element)}" ends at ${Math.round(box.right)} px of ${width}`);
    }
  }

  // text can be read (WCAG 2.2, 1.4.3: 4.5 to 1, large text 3 to 1), and lines be seen (1.4.11: 3 to 1)
  const numbers = (colour) => { const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const isText = (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim();
  for (const element of all('body *').filter((e) => [...e.childNodes].some(isText))) {
    const style = getComputedStyle(element);
    const below = ground(element);
    const ink = over(numbers(element.closest('svg') ? style.fill : style.color), below);
    const size = parseFloat(style.fontSize);
    const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const found = contrast(ink, below);
    if (found < needed) faults.push(`"${words(element)}" has a contrast of ${found.toFixed(2)}, less than ${needed}`);
  }
  const page = ground(document.body);
  for (const [element, pseudo] of all('.legend li').map((e) => [e, '::before'])) {
    const found = contrast(numbers(getComputedStyle(element, pseudo).backgroundColor).slice(0, 3), page);
    if (found < 3) faults.push(`the line of "${words(element)}" has a contrast of ${found.toFixed(2)}, less than 3`);
  }

  // labels of a figure stand apart, inside it, and are large enough
  for (const svg of all('svg')) {
    const name = svg.getAttribute('aria-label');
    const texts = all('text', svg).map((text) => [text, text.getBoundingClientRect()]).filter(([, box]) => box.width);
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    texts.forEach(([text, a], i) => {
      if (a.top < frame.top - 2 || a.bottom > frame.bottom + 2) faults.push(`"${words(text)}" sticks out of "${name}"`);
      const size = scale * parseFloat(getComputedStyle(text).fontSize);
      if (size < 9) faults.push(`"${words(text)}" in "${name}" is set in ${size.toFixed(1)} px`);
      if (a.left < frame.left - 2 || a.right > frame.right + 2) faults.push(`"${words(text)}" sticks out of "${name}"`);
      for (const [other, b] of texts.slice(i + 1)) {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 1 && y > 3) faults.push(`"${words(text)}" and "${words(other)}" overlap in "${name}"`);
      }
    });
  }

  // what a screen reader goes by
  const levels = all('h1, h2, h3, h4').map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1 || levels[0] !== 1) faults.push('there is not one h1, first');
  if (levels.some((level, i) => i && level > levels[i - 1] + 1)) faults.push(`headings skip a level: ${levels}`);
  if (!document.documentElement.lang || !document.title) faults.push('the page has no language or no title');
  for (const svg of all('svg')) {
    if (svg.getAttribute('role') !== 'img' || !svg.getAttribute('aria-label')) faults.push('a figure has no name');
    if (!svg.closest('figure')?.querySelector('figcaption')?.textContent) faults.push('a figure has no caption');
  }
  for (const table of all('table')) {
    if (all('thead th:not([scope=col]), tbody th:not([scope=row])', table).length) faults.push('a heading has no scope');
    if (!all('tbody tr', table).every((row) => row.querySelector('th'))) faults.push('a row has no heading');
    if (!table.caption && !table.closest('[aria-label]')) faults.push('a table has no name');
  }
  for (const place of all('.scroll, pre')) {
    if (place.scrollWidth > place.clientWidth && place.tabIndex < 0) {
      faults.push(`"${words(place)}" scrolls, and no key does it`);
    }
  }
  for (const link of all('a')) {
    if (!document.querySelector(link.getAttribute('href'))) faults.push(`"${words(link)}" leads nowhere`);
  }
  return [...new Set(faults)];
})()
