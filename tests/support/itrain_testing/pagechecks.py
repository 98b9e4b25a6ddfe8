"""What a page must be for people who do not see it, or use no mouse: checked on what the browser computed."""

from __future__ import annotations

from typing import Any

CONTRAST = """() => {
  const parse = text => {
    const n = (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    if (text.startsWith('color(srgb')) return [255 * n[0], 255 * n[1], 255 * n[2], n.length > 3 ? n[3] : 1];
    return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]).concat([1]);
  const background = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => top[3] ? over(top, below) : below, [255, 255, 255, 1]);
  };
  const light = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const below = background(element);
    const text = over(parse(element instanceof SVGElement ? style.fill : style.color), below);
    const [high, low] = [light(text), light(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
    const least = size >= 24 || (bold && size >= 18.66) ? 3 : 4.5;
    if (ratio < least) found.push([walk.currentNode.data.trim().slice(0, 40), element.className.toString(), ratio]);
  }
  return found;
}"""
"""Visible texts below WCAG 2.2 AA (1.4.3): what they say, their class, their contrast."""

FOCUS = """() => {
  const at = document.activeElement;
  const style = getComputedStyle(at);
  return {
    tag: at.tagName.toLowerCase(),
    name: at.getAttribute('aria-label') || at.innerText.trim(),
    outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1,
    visible: at.checkVisibility(),
  };
}"""


def faint_texts(page: Any) -> list[Any]:
    found: list[Any] = page.evaluate(CONTRAST)
    return found


def heading_levels(page: Any) -> list[int]:
    """Levels of the visible headings in reading order."""
    tags = page.locator("h1, h2, h3, h4, h5, h6").all()
    return [int(tag.evaluate("e => e.tagName[1]")) for tag in tags if tag.is_visible()]


def tabbed(page: Any, most: int) -> list[dict[str, Any]]:
    """What gets the focus, one after the other, by the tabulator key, until it leaves the page."""
    found: list[dict[str, Any]] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUS)
        if focused["tag"] == "body":
            break
        found.append(focused)
    return found


def table_faults(page: Any) -> list[str]:
    """Header cells without scope, rows without a header, tables outside a named region."""
    faults: list[str] = page.evaluate("""() => {
      const found = [];
      for (const th of document.querySelectorAll('th'))
        if (!['col', 'row', 'rowgroup', 'colgroup'].includes(th.scope)) found.push('no scope: ' + th.innerText);
      for (const row of document.querySelectorAll('tbody tr'))
        if (!row.querySelector('th')) found.push('no row header: ' + row.innerText);
      for (const table of document.querySelectorAll('table'))
        if (!table.closest('[role=region][aria-label]')) found.push('no name: ' + table.innerText.slice(0, 40));
      return found;
    }""")
    return faults
