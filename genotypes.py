"""Cells as data: the published ones by name, and reading, checking, writing and drawing any cell.

A genotype says what a searched cell is made of. Each family of search spaces has its own kind, and `load` and `check`
return every valid one in one canonical form, so that equal cells compare equal:

    darts    Genotype(normal, normal_concat, reduce, reduce_concat): nodes 2..5 each sum two (operation, input) pairs,
             listed node by node; inputs 0 and 1 are the two cells before; the cell concatenates the nodes in `concat`.
    nb201    the string |op~0|+|op~0|op~1|+|op~0|op~1|op~2|: node j sums one operation per earlier node.
    1shot1   OneShotGenotype(ops, inputs): operations sit on the nodes 1, 2, ...; `inputs` lists what each node sums,
             and last what the output concatenates; 0 is the cell's input.
"""

import ast
import difflib
import io
import json
import os
import re
from itertools import pairwise
from pathlib import Path

from rome import ONE_SHOT_OPS, SPACES, Genotype, OneShotGenotype

KINDS = {"darts": Genotype, "1shot1": OneShotGenotype, "nb201": str}
SCHEMA, LARGEST = 1, 1 << 20  # version of the JSON files, and bytes that are read: a genotype needs a thousand
PARAMETER_FREE = {"skip_connect", "max_pool_3x3", "avg_pool_3x3", "noise", "none", "skip-connect", "maxpool3x3"}
DARTS_OPS = sorted({*SPACES["darts"].ops["normal"][0], *SPACES["s4"].ops["normal"][0]})  # S1 to S3 are parts of S0
NB201_OPS = sorted({"none", *sum(SPACES["nb201"].ops["cell"], ())})

ARCH = r"\|(.+)~0\|\+\|(.+)~0\|(.+)~1\|\+\|(.+)~0\|(.+)~1\|(.+)~2\|".replace(".", "[^|~+]")
# [NAME =] [rome.]Genotype(...), with nothing but brackets, digits, names of fields and quoted words inside.
PRINTED = r"(?:\w+ *= *)?(?:\w+\.)?((?:OneShot)?Genotype\s*\((?:[\s\[\](),\d]|\b[a-z_]+ *=|'[\w-]*'|\"[\w-]*\")*\))"

# The published cells: "operation input", a bar between two nodes; first the normal, then the reduction cell.
_SHORT = {"skip": "skip_connect", "max": "max_pool_3x3", "avg": "avg_pool_3x3", "sep3": "sep_conv_3x3"}
_SHORT |= {"sep5": "sep_conv_5x5", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5"}
_TABLE = """
# DARTS, first and second order, CIFAR-10 (Liu et al., ICLR 2019): quark0/darts, cnn/genotypes.py
DARTS_V1        sep3 1, sep3 0 | skip 0, sep3 1 | skip 0, sep3 1 | sep3 0, skip 2
                max 0, max 1 | skip 2, max 0 | max 0, skip 2 | skip 2, avg 0
DARTS_V2        sep3 0, sep3 1 | sep3 0, sep3 1 | sep3 1, skip 0 | skip 0, dil3 2
                max 0, max 1 | skip 2, max 1 | max 0, skip 2 | skip 2, max 1
# PC-DARTS, searched on CIFAR-10 and on ImageNet (Xu et al., ICLR 2020): yuhuixu1993/PC-DARTS, genotypes.py
PC_DARTS_cifar  sep3 1, skip 0 | sep3 0, dil3 1 | sep5 0, sep3 1 | avg 0, dil3 1
                sep5 1, max 0 | sep5 1, sep5 2 | sep3 0, sep3 3 | sep3 1, sep3 2
PC_DARTS_image  skip 1, sep3 0 | sep3 0, skip 1 | sep3 1, sep3 3 | sep3 1, dil5 4
                sep3 0, skip 1 | dil5 2, max 1 | sep3 2, sep3 1 | sep5 0, sep3 3
# P-DARTS, CIFAR-10 (Chen et al., ICCV 2019): chenxin061/pdarts, genotypes.py
PDARTS          skip 0, dil3 1 | skip 0, sep3 1 | sep3 1, sep3 3 | sep3 0, dil5 4
                avg 0, sep5 1 | sep3 0, dil5 2 | max 0, dil3 1 | dil3 1, dil5 3
# GDAS, CIFAR-10 (Dong and Yang, CVPR 2019): D-X-Y/GDAS, lib/nas_infer_model/DXYs/genotypes.py
GDAS_V1         skip 0, skip 1 | skip 0, sep5 2 | sep3 3, skip 0 | sep5 4, sep3 3
                sep5 0, sep3 1 | sep5 2, sep5 1 | dil5 2, sep3 1 | sep5 0, sep5 1
"""
PUBLISHED = {}
for _name, *_rows in re.findall(r"^(\w+) +(.+)\n +(.+)$", _TABLE, re.MULTILINE):
    _cells = [[(_SHORT[op], int(i)) for op, i in re.findall(r"(\w+) (\d)", row)] for row in _rows]
    PUBLISHED[_name] = Genotype(_cells[0], [2, 3, 4, 5], _cells[1], [2, 3, 4, 5])


def _require(condition, message):
    if not condition:
        raise ValueError(message)


def _check_op(op, known, where):
    _require(isinstance(op, str) and op in known, f"{where}: unknown operation {op!r:.80}; known: {', '.join(known)}")


def _numbers(value, low, high, where):
    numbers = list(value[:9]) if isinstance(value, (list, tuple, range)) else []
    good = numbers and all(type(i) is int and low <= i <= high for i in numbers) and numbers == sorted(set(numbers))
    _require(good, f"{where}: expected distinct ascending numbers from {low} to {high}, not {value!r:.80}")
    return numbers


def _pairs(value, cell):
    good = isinstance(value, (list, tuple)) and len(value) == 8
    good = good and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
    _require(good, f"{cell} cell: expected 8 pairs (operation, input), two for each of the nodes 2 to 5")
    for position, (op, i) in enumerate(value):
        node, where = 2 + position // 2, f"{cell} cell, node {2 + position // 2}"
        _check_op(op, DARTS_OPS, where)
        _require(type(i) is int and 0 <= i < node, f"{where}: expected an input from 0 to {node - 1}, not {i!r:.80}")
        _require(position % 2 == 0 or i != value[position - 1][1], f"{where}: its two inputs must differ, both are {i}")
    return [tuple(pair) for pair in value]


def check(genotype):
    """The genotype in canonical form; a ValueError says which cell, node and entry is wrong."""
    if isinstance(genotype, str):
        found = re.fullmatch(ARCH, genotype.strip())
        _require(found, f"expected |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, not {genotype!r:.80}")
        for node, op in zip((1, 2, 2, 3, 3, 3), found.groups(), strict=True):
            _check_op(op, NB201_OPS, f"node {node}")
        return found[0]
    fields = getattr(genotype, "_fields", None)  # by its fields: the namedtuple of DARTS's own code is welcome
    if fields == Genotype._fields:
        normal, reduce = _pairs(genotype.normal, "normal"), _pairs(genotype.reduce, "reduce")
        return Genotype(normal, _numbers(genotype[1], 2, 5, fields[1]), reduce, _numbers(genotype[3], 2, 5, fields[3]))
    _require(fields == OneShotGenotype._fields, f"not a genotype: {genotype!r:.80}")
    good = all(isinstance(part, (list, tuple)) for part in genotype) and len(genotype[0]) + 1 == len(genotype[1]) < 9
    _require(good, "expected ops, one per node, and inputs, one list per node and a last one for the output")
    for node, op in enumerate(genotype.ops, 1):
        _check_op(op, ONE_SHOT_OPS, f"node {node}")
    inputs = tuple(tuple(_numbers(row, 0, n - 1, f"inputs of node {n}")) for n, row in enumerate(genotype.inputs, 1))
    picks, known = tuple(map(len, inputs)), [space.picks for space in SPACES.values() if space.family == "1shot1"]
    _require(picks in known, f"no space has {picks} inputs per node; known: {', '.join(map(str, known))}")
    return OneShotGenotype(tuple(genotype.ops), inputs)


def _from_python(text):
    """The genotype in printed text: parsed into a syntax tree, of which only literals are taken."""
    text = re.sub(r"range\((\d), ?(\d)\)", lambda found: str([*range(int(found[1]), int(found[2]))]), text)
    found = re.fullmatch(PRINTED, re.sub(r"#.*", "", text[:20000]).strip(), re.ASCII)
    _require(found, "expected Genotype(...) or OneShotGenotype(...) of literals, and nothing else")
    call = ast.parse(found[1], mode="eval").body
    kind = {"Genotype": Genotype}.get(call.func.id, OneShotGenotype)
    _require(len(call.args) + len(call.keywords) == len(kind._fields), f"expected {', '.join(kind._fields)}, each once")
    return kind(*map(ast.literal_eval, call.args), **{k.arg: ast.literal_eval(k.value) for k in call.keywords})


def _parse(text):
    text = text.strip()
    try:
        if text[:1] == "{":
            schema, kind, value = map(json.loads(text).get, ("schema", "kind", "genotype"))
            _require(type(schema) is int and schema == SCHEMA, f"schema {schema!r:.80} is unknown; this reads {SCHEMA}")
            return check(value if kind == "nb201" else KINDS[kind](**value))
        return check(text if text[:1] == "|" else _from_python(text))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the fields or the kind ({', '.join(KINDS)}) do not fit: {error!r:.120}") from None
    except (SyntaxError, json.JSONDecodeError, RecursionError, MemoryError) as error:
        raise ValueError(f"not readable as a genotype: {getattr(error, 'msg', 'nested too deeply')}") from None


def load(source):
    """The genotype of a published name, a file, or JSON or printed text; otherwise a ValueError of one line."""
    _require(isinstance(source, (str, os.PathLike)), f"expected a name, a path or text, not {source!r:.80}")
    if isinstance(source, str) and (source in PUBLISHED or re.search(r"^\s*[{|]|Genotype\s*\(", source)):
        return check(PUBLISHED[source]) if source in PUBLISHED else _parse(source)
    close = difflib.get_close_matches(str(source)[:80].upper(), PUBLISHED, 1)
    hint = f"did you mean {close[0]}?" if close else f"published are {', '.join(PUBLISHED)}"
    try:
        _require(os.path.exists(source), f"neither a published cell nor a file; {hint}")
        _require(os.path.isfile(source), "not a regular file; a run keeps its cell in RUN/genotype.json")
        with open(source, "rb") as file:
            data = file.read(LARGEST + 1)
        _require(len(data) <= LARGEST, f"larger than {LARGEST} bytes, so not a genotype")
        return _parse(data.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        text = "not a text file" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise ValueError(f"{os.fspath(source)!r:.100}: {text}") from None


def write(path, data):
    """Write bytes under a temporary name, then rename: a reader sees the old file or the new one, never half of it."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(genotype, path, **extra):
    """Write a genotype as JSON with `extra`, any JSON values, beside it; errors leave the file as it was."""
    genotype = check(genotype)
    kind = next(kind for kind in KINDS if isinstance(genotype, KINDS[kind]))
    value = genotype if kind == "nb201" else genotype._asdict()
    data = dict(schema=SCHEMA, kind=kind, genotype=value, **extra)  # a TypeError if `extra` has one of these names
    lines = {key: json.dumps(value, allow_nan=False) for key, value in data.items()}
    lines["genotype"] = re.sub(r'(?<=\{)|(?<=\],) (?=")', "\n    ", lines["genotype"])  # a line for each field
    write(path, ("{\n  " + ",\n  ".join(f'"{key}": {line}' for key, line in lines.items()) + "\n}\n").encode())


def _graph(genotype):
    """Per cell its nodes, inputs first, output last: (name, operation on it, [(operation on the edge, input), ...])."""
    genotype = check(genotype)
    if isinstance(genotype, Genotype):
        graph, inputs = {}, [("c_{k-2}", "", []), ("c_{k-1}", "", [])]
        for cell, pairs, concat in (("normal", *genotype[:2]), ("reduce", *genotype[2:])):
            nodes = [(f"x_{j}", "", pairs[2 * j - 4 : 2 * j - 2]) for j in (2, 3, 4, 5)]
            graph[cell] = [*inputs, *nodes, ("c_k", "concat", [("", i) for i in concat])]
        return graph
    if isinstance(genotype, str):
        nodes = [("", [(edge[:-2], int(edge[-1])) for edge in row[1:-1].split("|")]) for row in genotype.split("+")]
    else:
        nodes = [(op, [("", i) for i in row]) for op, row in zip((*genotype[0], "concat"), genotype[1], strict=True)]
    names = [*(f"x_{j}" for j in range(len(nodes))), "c_k" if nodes[-1][0] else "x_3"]
    return {"cell": [(name, *node) for name, node in zip(names, [("", []), *nodes], strict=True)]}


def parameter_free(genotype):
    """Per cell type, how many operations have no parameters; of the normal cell, this is the paper's Num."""
    graph = _graph(genotype)
    return {c: sum(op in PARAMETER_FREE for _, on, edges in graph[c] for op, _ in [(on, 0), *edges]) for c in graph}


def describe(genotype):
    """The genotype as text, one line per node."""
    lines = []
    for cell, nodes in _graph(genotype).items():
        lines.append(f"{cell}, parameter-free ops: {parameter_free(genotype)[cell]}")
        names = [re.sub("[{}]", "", name) for name, _, _ in nodes]
        for name, (_, on, edges) in zip(names, nodes, strict=True):
            terms = (", " if on == "concat" else " + ").join(f"{op}({names[i]})" if op else names[i] for op, i in edges)
            lines += [f"  {name} = {on}({terms})" if on else f"  {name} = {terms}"] if edges else []
    return "\n".join(lines)


_COLOUR = {"sep": "#2563a8", "nor": "#2563a8", "con": "#2563a8", "dil": "#6f42ab", "max": "#1b7a5e", "avg": "#1b7a5e"}
_COLOUR |= {"ski": "#b35a06", "noi": "#b0304f", "non": "#747b84", "": "#8b9199"}  # by an operation's first letters
_INK, _PAPER = "#22272e", "#fcfcfa"


def _smooth(knots):  # into cubic Bezier pieces, horizontal at every knot
    return knots[:1] + [p for (a, b), (c, d) in pairwise(knots) for p in (((a + c) / 2, b), ((a + c) / 2, d), (c, d))]


def _layout(genotype):
    """Width, height, curves (colour, Bezier points), boxes (x, y of the middle, width, height, fill, text, ink)."""
    genotype, free, curves, boxes, top = check(genotype), parameter_free(genotype), [], [], 0
    pill, half = 130 if isinstance(genotype, OneShotGenotype) else 108, 71 if isinstance(genotype, str) else 50
    for cell, nodes in _graph(genotype).items():
        inputs = sum(not edges for _, _, edges in nodes)  # they share column 0
        column = [max(0, n - inputs + 1) for n in range(len(nodes))]
        x = [44 + c * (pill + 116) - (pill + 32) * (nodes[n][1] == "concat") for n, c in enumerate(column)]
        routes = []  # columns spanned, input, node, operation, slot: up to 0 reached from above, else from below
        for n, (_, _, edges) in enumerate(nodes):
            for k, (op, i) in enumerate(sorted(edges, key=lambda edge: (edge[1] == 1, edge[1]))):
                routes.append((column[n] - column[i], i, n, op, k - (len(edges) - 1) / 2))
        far = [r for r in sorted(routes) if r[0] > 1 and nodes[r[2]][1] != "concat"]  # on lanes, the longest outermost
        above, below = [r for r in far if r[4] <= 0], [r for r in far if r[4] > 0]
        middle = top + 40 + half + 11 * len(above)
        y = [middle + (36 if n else -36) * (inputs == 2 and c == 0) for n, c in enumerate(column)]
        for route in routes:
            span, i, n, op, slot = route
            on, shift = nodes[n][1], 11 * (above if route in above else [*below, route]).index(route)
            level = middle - half - shift if route in above else middle + half + shift  # concat: below all lanes
            start, end, reach = (x[i], y[i]), (x[n], middle), 34
            if on != "concat":
                left, goal, colour = x[n] - 33 - pill, middle + slot * 42 * (not on), _COLOUR[(op or on)[:3]]
                start, end, reach = (x[i] + 17, y[i]), (left, goal + slot * 12 * bool(on)), 44
                curves.append((colour, [(left + pill, goal), (x[n] - 17, middle)]))
                boxes.append((left + pill / 2, goal, pill, 26, colour, op or on, "#ffffff"))
            lane = [(start[0] + reach, level), (end[0] - reach, level)] if span > 1 else []
            curves.append((_COLOUR[op[:3]], [start, *lane, end]))
        for n, (name, _, edges) in enumerate(nodes):
            wide, fill, ink = (34, _PAPER, _INK) if edges and n + 1 < len(nodes) else (44, _INK, _PAPER)
            boxes.append((x[n], y[n], wide, 34, fill, f"${name}$", ink))
        title = f"{cell.replace('reduce', 'reduction')}{' cell' * (cell != 'cell')}, parameter-free ops: {free[cell]}"
        boxes.append((22 + 3.6 * len(title), top + 22, 0, 0, "none", title, _INK))
        top = middle + half + 11 * len(below) + 12
    return x[-1] + 44, top + 8, [(colour, _smooth(knots)) for colour, knots in curves], boxes


def _svg(width, height, curves, boxes):
    style = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" text-anchor="middle"'
    size = f'width="{width}" height="{height}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}" {style}>']
    lines += [f'<rect {size} rx="12" fill="{_PAPER}"/>']
    for colour, points in curves:
        start, *rest = (f"{x:.1f},{y:.1f}" for x, y in points)
        lines += [f'<path d="M{start} C{" ".join(rest)}" fill="none" stroke="{colour}" stroke-width="2.4"/>']
    for x, y, w, h, fill, text, ink in boxes:
        style = f'rx="{h / 2}" fill="{fill}" stroke="{_INK if fill == _PAPER else fill}" stroke-width="1.5"'
        lines += [f'<rect x="{x - w / 2}" y="{y - h / 2}" width="{w}" height="{h}" {style}/>']
        text = re.sub(r"^\$(.)_{?(.+?)}?\$$", r'\1<tspan dy="4" font-size="10">\2</tspan>', text)
        lines += [f'<text x="{x:.1f}" y="{y + 4}" fill="{ink}" font-weight="{400 if h else 700}">{text}</text>']
    return "\n".join([*lines, "</svg>\n"]).encode()


def _png(width, height, curves, boxes):
    try:
        from matplotlib import figure, patches, path
    except ImportError:
        raise ValueError("a .png needs matplotlib: pip install matplotlib; an .svg needs nothing") from None
    canvas = figure.Figure((width / 72, height / 72), dpi=144, facecolor=_PAPER)
    axes = canvas.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), frame_on=False)
    for colour, points in curves:
        curve = path.Path(points, [1] + [4] * (len(points) - 1))
        axes.add_patch(patches.PathPatch(curve, fill=False, edgecolor=colour, linewidth=2.4))
    for x, y, w, h, fill, text, ink in boxes:
        style = {"boxstyle": f"round,pad=0,rounding_size={h / 2}", "edgecolor": _INK if fill == _PAPER else fill}
        axes.add_patch(patches.FancyBboxPatch((x - w / 2, y - h / 2), w, h, facecolor=fill, linewidth=1.5, **style))
        axes.text(x, y + 4, text, color=ink, ha="center", size=12, family="monospace", weight=400 if h else 700)
    buffer = io.BytesIO()
    canvas.savefig(buffer)
    return buffer.getvalue()


def draw(genotype, path):
    """Draw the cells into an .svg file, or a .png one through matplotlib; ValueError for another suffix."""
    paint = {".svg": _svg, ".png": _png}.get(Path(path).suffix.lower())
    _require(paint, f"{os.fspath(path)!r:.100}: the name of a picture ends in .svg or .png")
    write(path, paint(*_layout(genotype)))
