#!/usr/bin/python3
"""The pictures of windows.md, drawn from what the server printed when its examples were run.

  docs/explanation/figures.py            writes windows-*.svg beside this file
  docs/explanation/figures.py --check    fails if they are not what it would write

All numbers come from expected/window_examples.out. Python's own library suffices.
"""
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OUTPUT = os.path.join(HERE, "../../expected/window_examples.out")

INK, GREY, LINE = "#1f2933", "#7b8794", "#d5dbe1"
BLUE, BLUE_LIGHT, ORANGE, RED, GREEN = "#2f6fb2", "#cfe1f3", "#c2620a", "#c0262d", "#2e7d4f"


# ---------------------------------------------------------------- what was printed

def section(title):
    """What was typed and printed from this comment to the next."""
    text = open(OUTPUT, encoding="utf-8").read()
    return re.search(rf"^-- {re.escape(title)}[^\n]*\n(.*?)(?=^-- |\Z)", text, re.M | re.S)[1]


def records(text):
    """Each put(): its partition, device and seconds."""
    return [(int(part), device, [float(s) for s in seconds.split(",")])
            for part, device, seconds in re.findall(r"put\((\d+), '([\w-]+)', ([\d., ]+)\)", text)]


def tables(text):
    """Each printed table as a list of rows, which are lists of strings."""
    found = re.findall(r"^[-+]+\n((?: .*\n)*)\(\d+ rows?\)", text, re.M)
    return [[[cell.strip() for cell in row.split("|")] for row in rows.splitlines()] for rows in found]


def bounds(text):
    """'[0, 5)': start, end, is the end included."""
    start, end, closing = re.match(r"\[(.*), (.*)([\])])", text).groups()
    return float(start), float(end), closing == "]"


def windows_in(text):
    """The tables whose rows are windows with a number."""
    return [[(*bounds(row[0]), int(row[1])) for row in rows] for rows in tables(text) if rows and rows[0][0].startswith("[")
            and len(rows[0]) > 1]


# ---------------------------------------------------------------- drawing

def number(x):
    return f"{x:.1f}".rstrip("0").rstrip(".")


class Picture:
    def __init__(self, name, title, width, height):
        self.name, self.title, self.width, self.height, self.parts = name, title, width, height, []

    def add(self, tag, text=None, **attributes):
        words = " ".join(f'{key.replace("_", "-")}="{number(value) if isinstance(value, (int, float)) else value}"'
                         for key, value in attributes.items())
        self.parts.append(f"<{tag} {words}/>" if text is None else f"<{tag} {words}>{text}</{tag}>")

    def line(self, x1, y1, x2, y2, stroke=LINE, width=1, dash=None):
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width,
                 **({"stroke_dasharray": dash} if dash else {}))

    def path(self, points, stroke, width=1.5, dash=None):
        self.add("polyline", points=" ".join(f"{number(x)},{number(y)}" for x, y in points), fill="none", stroke=stroke,
                 stroke_width=width, **({"stroke_dasharray": dash} if dash else {}))

    def text(self, x, y, text, fill=INK, anchor="start", size=12, weight="normal"):
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        extra = {} if weight == "normal" else {"font_weight": weight}
        self.add("text", text, x=x, y=y, fill=fill, text_anchor=anchor, font_size=size, **extra)

    def dot(self, x, y, fill=INK, hollow=False):
        self.add("circle", cx=x, cy=y, r=4, fill="#ffffff" if hollow else fill, stroke=fill, stroke_width=1.5)

    def cross(self, x, y, stroke=RED):
        self.line(x - 4, y - 4, x + 4, y + 4, stroke, 2)
        self.line(x - 4, y + 4, x + 4, y - 4, stroke, 2)

    def bar(self, x1, x2, y, height, label, fill=BLUE_LIGHT, included=True):
        self.add("rect", x=x1, y=y, width=max(x2 - x1, 2), height=height, fill=fill)
        self.line(x1, y, x1, y + height, BLUE, 2)
        if included:
            self.line(max(x2, x1 + 2), y, max(x2, x1 + 2), y + height, BLUE, 2)
        self.text((x1 + x2) / 2 if x2 - x1 > 12 else x2 + 8, y + height - 4, label, anchor="middle", size=11)

    def svg(self):
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
                f'height="{self.height}" font-family="sans-serif" role="img">\n<title>{self.title}</title>\n'
                f'<rect width="100%" height="100%" fill="#ffffff"/>\n')
        return head + "\n".join(self.parts) + "\n</svg>\n"


def rows_of(windows):
    """Each window with the first row in which it does not touch another."""
    ends = []
    for window in windows:
        row = next((i for i, end in enumerate(ends) if end < window[0] - 0.2 or (end <= window[0] and not window[2])), len(ends))
        ends[row:row + 1] = [window[1]]
        yield row, window


# ---------------------------------------------------------------- the pictures

def kinds():
    text = section("the four kinds")
    seconds = next(s for _, device, s in records(text) if device == "press")
    rows = next(rows for rows in tables(text) if rows and rows[0][0] == "tumble")
    p = Picture("kinds", "Seven records, and the windows of the four kinds that hold them", 760, 334)
    x = lambda s: 130 + (s + 5) * 17
    y = 48
    p.text(14, y + 4, "records", weight="bold")
    p.line(x(-5), y, x(30), y, GREY)
    for s in seconds:
        p.line(x(s), y, x(s), 300, LINE, 1, "2 3")
    for s in range(-5, 31, 5):
        p.line(x(s), y - 4, x(s), y + 4, GREY)
        p.text(x(s), y - 22, f"{s} s", GREY, "middle", 11)
    for s in seconds:
        p.dot(x(s), y)
        p.text(x(s), y - 8, number(s), INK, "middle", 10)
    y += 24
    names = {"tumble": "tumble 5 s", "hop": "hop 10 s, 5 s", "slide": "slide 5 s", "session": "session 3 s"}
    for kind, name in names.items():
        lane = 0
        windows = [(*bounds(row[1]), int(row[2])) for row in rows if row[0] == kind]
        for row, (start, end, included, n) in rows_of(windows):
            behind = kind == "slide" and start != int(start)
            p.bar(x(start), x(end), y + row * 20, 16, str(n), "#e9edf1" if behind else BLUE_LIGHT, included)
            lane = max(lane, row)
        p.text(14, y + 12, name, weight="bold")
        y += lane * 20 + 34
    p.text(130, 322, "In a bar: how many records. A blue edge is included. Grey bars begin just behind a record.", GREY, size=11)
    return p


def time():
    rows = next(rows for rows in tables(section("one record comes")) if len(rows) == 12)
    arrivals = [dict(zip("n part at stream_time t late watermark w closes".split(), row)) for row in rows]
    p = Picture("time", "Stream time, T and W over the order of arrival", 760, 460)
    x = lambda n: 60 + n * 46
    y = lambda s: 400 - (s + 2) * 16
    colours = {"0": BLUE, "1": ORANGE}
    for s in range(0, 25, 5):
        p.line(x(0.5), y(s), x(13), y(s))
        p.text(x(0.5) - 8, y(s) + 4, f"{s} s", GREY, "end", 11)
    for s in range(0, 20, 5):
        p.text(x(13) + 6, y(s + 2.5) + 4, f"[{s}, {s + 5})", GREY, size=11)
    lines = {("", "w"): []} | {(part, what): [] for part in "01" for what in ("stream_time", "t")}
    for a in arrivals:
        n = int(a["n"])
        for (part, what), points in lines.items():
            value = float(a[what]) if part in ("", a["part"]) else None
            if value is None and not points:
                continue
            if points:
                points.append((x(n), points[-1][1]))
            if value is not None:
                points.append((x(n), y(value)))
            points.append((x(n + 0.95), points[-1][1]))
    for (part, what), points in lines.items():
        if what == "w":
            p.path(points, "#a9b4be", 5)
        else:
            p.path(points, colours[part], 1.5, "3 3" if what == "t" else None)
    for a in arrivals:
        n, at = int(a["n"]), float(a["at"])
        p.text(x(n), 428, a["n"], GREY, "middle", 11)
        if a["late"]:
            p.cross(x(n), y(at))
            p.text(x(n), y(at) - 9, f"late for {a['late']}", RED, "middle", 11)
        else:
            p.dot(x(n), y(at), colours[a["part"]])
        if a["closes"]:
            window, count = a["closes"].split(": ")
            p.line(x(n), y(bounds(window)[1]), x(n), y(float(a["w"])), GREEN, 2)
            p.dot(x(n), y(bounds(window)[1]), GREEN, hollow=True)
            p.text(x(n) + 8, y(bounds(window)[1]) + 15, f"closes {window}, {count} records", GREEN, size=11)
    p.text(x(6.5), 448, "order of arrival", GREY, "middle", 11)
    left = 70
    for part in "01":
        p.line(left, 18, left + 24, 18, colours[part], 1.5)
        p.text(left + 30, 22, f"stream time of partition {part}", size=11)
        p.line(left, 36, left + 24, 36, colours[part], 1.5, "3 3")
        p.text(left + 30, 40, "its T: less the lateness of 2 s", size=11)
        left += 200
    p.line(left, 18, left + 24, 18, "#a9b4be", 5)
    p.text(left + 30, 22, "W: watermark less lateness", size=11)
    p.dot(left + 6, 36, GREY)
    p.text(left + 30, 40, "a record that counts", size=11)
    return p


def session():
    text = section("session")
    before, after = windows_in(text)[:2]
    last = [bounds(row[1]) + (int(row[2]),) for row in next(rows for rows in tables(text) if rows and rows[0][0] == "press")
            if row[0] == "press"]
    late = float(bounds(next(rows for rows in tables(text) if rows and len(rows[0]) == 2 and rows[0][0] == "6")[0][1])[0])
    puts = records(text)
    gap, lateness, other = 5, 10, next(s[0] for _, device, s in puts if device == "other")
    first, second, third = (s for _, device, s in puts if device == "press")
    p = Picture("session", "Two sessions merge when a record connects them", 760, 346)
    x = lambda s: 190 + s * 22
    for s in range(0, 25, 5):
        p.line(x(s), 34, x(s), 300)
        p.text(x(s), 26, f"{s} s", GREY, "middle", 11)

    def stage(y, title, note, old, new, windows):
        p.text(14, y + 4, title, weight="bold")
        p.text(14, y + 22, note, GREY, size=11)
        for s in old:
            p.dot(x(s), y)
        for s in new:
            if s == late:
                p.cross(x(s), y)
                p.text(x(s), y - 10, "late", RED, "middle", 11)
            else:
                p.dot(x(s), y, ORANGE)
        for start, end, _, n in windows:
            p.add("rect", x=x(end), y=y + 14, width=gap * 22, height=18, fill="#eef3f8")
        for start, end, included, n in windows:
            p.bar(x(start), x(end), y + 14, 18, str(n))

    stage(64, "0, 3, 12, 17.000001", "three sessions", first, [], before)
    stage(144, "then 8", "two of them merge", first, second, after)
    t = other - lateness
    stage(224, "then 11 and 13", f"T is {number(t)}", first + second, third, last)
    p.line(x(t), 204, x(t), 300, RED, 1.5, "4 3")
    p.text(x(t) + 6, 212, "T", RED, size=12, weight="bold")
    p.text(190, 318, "Blue: a session, and how many records it has. Pale: as far as the gap of 5 s reaches.", GREY, size=11)
    p.text(190, 334, "A session whose reach ends before T is over, and takes no more records.", GREY, size=11)
    return p


def slide():
    text = section("slide")
    windows = max(windows_in(text), key=len)
    from_, to, _ = bounds(next(rows for rows in tables(text) if rows and rows[0][0] == "4")[0][1])
    seconds = next(s for _, device, s in records(text) if device == "press")
    late = seconds[-1]
    p = Picture("slide", "Slices of one key, and the sliding windows that are put together from them", 790, 350)
    x = lambda s: 130 + (s + 10) * 19
    p.text(14, 64, "slices", weight="bold")
    for s in range(-10, 21, 5):
        p.text(x(s), 24, f"{s} s", GREY, "middle", 11)
        p.line(x(s), 30, x(s), 36, GREY)
    for s in seconds:
        colour = ORANGE if s == late else BLUE
        p.line(x(s), 52, x(s), 316, "#f0c9a0" if s == late else BLUE_LIGHT, 2)
        p.add("rect", x=x(s) - 9, y=48, width=18, height=22, fill="#ffffff", stroke=colour, stroke_width=1.5)
        p.text(x(s), 63, number(s), colour, "middle", 11)
    for row, (start, end, included, n) in enumerate(sorted(windows, key=lambda w: w[1])):
        y = 90 + row * 28
        p.bar(x(start), x(end), y, 20, "", "#e9edf1" if start != int(start) else BLUE_LIGHT)
        inside = [s for s in seconds if start <= s <= end]
        counted = [s for s in inside if s != late or not (from_ <= start and end < to)]
        if len(counted) != n:
            sys.exit(f"window [{start}, {end}] should hold {counted}, and has {n}")
        for s in inside:
            if s in counted:
                p.dot(x(s), y + 10, ORANGE if s == late else BLUE)
            else:
                p.cross(x(s), y + 10)
        p.text(x(end) + 8, y + 14, f"{n} reading{'s' if n > 1 else ''}", size=11)
        p.text(14, y + 14, f"[{start:.6g}, {end:.6g}]" if start == int(start) else f"[{int(start)} + 1 µs, {int(end)} + 1 µs]", size=11)
    p.text(130, 338, f"The record at {number(late)} came when stream time was {number(to)}: it counts in windows that end at {number(to)} or later.", GREY, size=11)
    return p


def silence():
    text = section("silence, and its bound")
    puts = [s for _, _, s in records(text)]
    marks = [(float(row[0]), float(row[1])) for rows in tables(text) for row in rows if len(row) == 2 and row[0][0] != "["]
    marks = [m for m in marks if m[1] > 0]
    before, after = marks[0][0], marks[1][0]
    closed = windows_in(text)[0]
    clocks = [float(c) for c in re.findall(r"run\('silence', (\d+)\)", text)]
    idle_at, back = clocks[2], clocks[4]
    p = Picture("silence", "Silence closes what is open and no more: a gateway that comes back is not late", 760, 400)
    x = lambda c: 70 + c * 8 if c < 100 else 640
    y = lambda s: 350 - s * 5.4
    for s in range(0, 51, 10):
        p.line(x(0), y(s), 696, y(s))
        p.text(x(0) - 8, y(s) + 4, f"{s} s", GREY, "end", 11)
        if s < 50:
            p.text(702, y(s + 5) + 4, f"[{s}, {s + 10})", GREY, size=11)
    for c in (0, 12, 42):
        p.text(x(c), 372, f"{c} s", GREY, "middle", 11)
    p.text(640, 372, "6 h", GREY, "middle", 11)
    p.text(x(30), 390, "the clock", GREY, "middle", 11)
    p.text(70, 48, "event time", GREY, "middle", 11)
    p.text(596, 356, "~ ~", GREY, "middle", 14)
    end = puts[0][-1]
    p.path([(x(1), y(1)), (x(end), y(end)), (x(idle_at), y(before)), (x(idle_at), y(after)), (640, y(after)), (640, y(puts[1][-1]))],
           "#a9b4be", 5)
    p.path([(x(idle_at), y(after)), (x(idle_at), y(idle_at)), (x(idle_at + 10), y(idle_at + 10))], RED, 1.5, "4 3")
    p.text(x(idle_at) - 8, y(46), "without the bound: all that", RED, "end", 11)
    p.text(x(idle_at) - 8, y(46) + 15, "the gateway kept would be late", RED, "end", 11)
    for s in puts[0]:
        p.dot(x(s), y(s), BLUE)
    for s in puts[1]:
        p.dot(640, y(s), ORANGE)
    p.text(x(end) + 8, y(before) + 18, "the watermark waits for idle_timeout, 30 s", INK, size=11)
    p.dot(x(idle_at), y(after), GREEN, hollow=True)
    windows = ", ".join(f"[{number(a)}, {number(b)}): {n}" for a, b, _, n in closed)
    p.text(x(idle_at) + 10, y(after) + 18, f"closes {windows}", GREEN, size=11)
    p.text(x(idle_at) + 10, y(after) + 33, f"and stays at {number(after)} = 20 + lateness", INK, size=11)
    p.text(628, y(46), "what it kept: not late", ORANGE, "end", 11)
    return p


def main():
    wrong = []
    for draw in (kinds, time, session, slide, silence):
        picture = draw()
        path = os.path.join(HERE, f"windows-{picture.name}.svg")
        if sys.argv[1:] != ["--check"]:
            open(path, "w", encoding="utf-8").write(picture.svg())
        elif not os.path.exists(path) or open(path, encoding="utf-8").read() != picture.svg():
            wrong.append(os.path.basename(path))
    if wrong:
        sys.exit(f"not what docs/explanation/figures.py writes: {' '.join(wrong)}")


main()
