"""Cells as data: the published ones by name; read, check, write and draw any cell, or choose one at random.

A genotype is a rome.Genotype (DARTS), a rome.OneShotGenotype, or NAS-Bench-201's string. Equal cells compare equal.
"""

import ast
import html
import io
import json
import os
import re
from pathlib import Path

import rome
from rome import Genotype, OneShotGenotype

KINDS = {"darts": Genotype, "1shot1": OneShotGenotype, "nb201": str}
SCHEMA = 1  # version of the JSON files
# `none` is a missing edge. An operation of a user's own counts as one with parameters unless it is added here.
PARAMETER_FREE = {"skip_connect", "max_pool_3x3", "avg_pool_3x3", "noise", "skip-connect", "maxpool3x3"}

# [NAME =] [rome.]Genotype(...), with nothing but brackets, digits, names of fields and quoted words inside.
PRINTED = r"(?:\w+ *= *)?(?:\w+\.)?((?:OneShot)?Genotype\s*\((?:[\s\[\](),\d]|\b[a-z_]+ *=|'[\w-]*'|\"[\w-]*\")*\))"

# The published cells: "operation input", a bar between two nodes; the normal cell above the reduction cell. From the
# authors' code: quark0/darts, yuhuixu1993/PC-DARTS (found on CIFAR-10, on ImageNet), chenxin061/pdarts, D-X-Y/GDAS.
_SHORT = {"skip": "skip_connect", "max": "max_pool_3x3", "avg": "avg_pool_3x3", "sep3": "sep_conv_3x3"}
_SHORT |= {"sep5": "sep_conv_5x5", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5"}
_TABLE = """
DARTS_V1        sep3 1, sep3 0 | skip 0, sep3 1 | skip 0, sep3 1 | sep3 0, skip 2
                max 0, max 1 | skip 2, max 0 | max 0, skip 2 | skip 2, avg 0
DARTS_V2        sep3 0, sep3 1 | sep3 0, sep3 1 | sep3 1, skip 0 | skip 0, dil3 2
                max 0, max 1 | skip 2, max 1 | max 0, skip 2 | skip 2, max 1
PC_DARTS_cifar  sep3 1, skip 0 | sep3 0, dil3 1 | sep5 0, sep3 1 | avg 0, dil3 1
                sep5 1, max 0 | sep5 1, sep5 2 | sep3 0, sep3 3 | sep3 1, sep3 2
PC_DARTS_image  skip 1, sep3 0 | sep3 0, skip 1 | sep3 1, sep3 3 | sep3 1, dil5 4
                sep3 0, skip 1 | dil5 2, max 1 | sep3 2, sep3 1 | sep5 0, sep3 3
PDARTS          skip 0, dil3 1 | skip 0, sep3 1 | sep3 1, sep3 3 | sep3 0, dil5 4
                avg 0, sep5 1 | sep3 0, dil5 2 | max 0, dil3 1 | dil3 1, dil5 3
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


def _kind(genotype):
    family = rome.family_of(genotype)
    return next(kind for kind in KINDS if rome.FAMILIES[kind] is family)


def _graph(genotype):
    """Per cell its nodes, inputs first, output last: (name, operation on it, [(operation on the edge, input), ...])."""
    if _kind(genotype) == "darts":
        graph = {}
        for cell, pairs, concat in (("normal", *genotype[:2]), ("reduce", *genotype[2:])):
            pairs, nodes = [(op, i) for op, i in pairs], [("c_k-2", "", []), ("c_k-1", "", [])]
            nodes += [(f"x_{2 + k // 2}", "", pairs[k : k + 2]) for k in range(0, len(pairs), 2)]
            graph[cell] = [*nodes, ("c_k", "concat", [("", i) for i in concat])]
        return graph
    nodes = [("x_0", "", [])]
    if isinstance(genotype, str):
        for j, row in enumerate(genotype.split("+"), 1):
            nodes.append((f"x_{j}", "", [(op, int(i)) for op, i in re.findall(r"([^|~]+)~(\d+)", row)]))
    else:
        for j, (op, inputs) in enumerate(zip((*genotype.ops, "concat"), genotype.inputs, strict=True), 1):
            nodes.append((f"x_{j}" if j < len(genotype.inputs) else "c_k", op, [("", i) for i in inputs]))
    return {"cell": nodes}


def _space(space):
    if not isinstance(space, str):
        return space
    _require(space in rome.SPACES, f"no space {space!r:.80}; known: {', '.join(rome.SPACES)}")
    return rome.SPACES[space]


def check(genotype, space=None):
    """The genotype in canonical form; a ValueError says which cell, node and entry is wrong.

    space: a name in rome.SPACES or a rome.Space. Without it any operation of the family may stand anywhere.
    """
    kind, space = _kind(genotype), _space(space)
    _require(space is None or kind == space.family, f"a genotype of the family {kind} is not in this space")
    if kind == "nb201":
        genotype, form = genotype.strip(), "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        _require(re.sub(r"[^|~+]+~", "op~", genotype) == form, f"expected {form}, not {genotype!r:.80}")
    try:
        graph = _graph(genotype)
    except (TypeError, ValueError):
        raise ValueError(f"the lists of this genotype do not fit together: {genotype!r:.200}") from None
    family, start = rome.FAMILIES[kind], rome.FAMILIES[kind].cell_inputs
    for cell, nodes in graph.items():
        number, edge = len(nodes) - start - int(kind == "darts"), 0  # edge: the node's first one
        if space:
            _require(number == len(space.picks), f"{cell}: expected {len(space.picks)} nodes, not {number}")
        for j, (name, on, edges) in enumerate(nodes[start:], start):
            where, inputs, is_output = f"{cell}, {name}", [i for _, i in edges], name == "c_k"
            first = 2 if is_output and kind == "darts" else 0
            count = 2 if not is_output and kind == "darts" else len(inputs) or 1
            good = all(type(i) is int and first <= i < j for i in inputs) and len(set(inputs)) == len(inputs) == count
            _require(good, f"{where}: expected {count} different inputs from {first} to {j - 1}, not {inputs!r:.80}")
            rows = [(op, edge + i) for op, i in edges] if family.ops_on_edges else [(on, j - 1)]
            for op, row in [] if is_output else rows:
                known = [*(space.ops[cell][row] if space else family.primitives)]
                known += ["none"] if kind == "nb201" else []
                _require(op in known, f"{where}: unknown operation {op!r:.80}; known: {', '.join(known)}")
            edge += j
    if kind == "1shot1":
        counts, spaces = tuple(map(len, genotype.inputs)), [space] if space else rome.SPACES.values()
        known = [s.picks for s in spaces if s.family == kind]
        _require(counts in known, f"no space has {counts} inputs per node; known: {', '.join(map(str, known))}")
        return OneShotGenotype(tuple(genotype.ops), tuple(tuple(sorted(row)) for row in genotype.inputs))
    if kind == "darts":
        normal, normal_concat, reduce, reduce_concat = genotype
        _require(len(normal) == len(reduce), "the normal and the reduce cell must have as many nodes")
        return Genotype([*map(tuple, normal)], sorted(normal_concat), [*map(tuple, reduce)], sorted(reduce_concat))
    return genotype


def random_cell(space, generator=None):
    """A cell of a space, each with the same probability. generator: a torch.Generator; without one, torch's own."""

    def choose(n, k):  # the places of the k largest of n independent draws
        return sorted(rome.gumbel_noise(n, generator).topk(k).indices.tolist())

    space = _space(space)
    family, cells = rome.check_space(space), {}
    for cell, rows in space.ops.items():
        inputs = [choose(n, k) for n, k in zip(space.candidates, space.picks)]
        cells[cell] = inputs, [row[choose(len(row), 1)[0]] for row in rows]
    return family.encode(cells)


def _from_python(text):
    """The genotype in printed text: parsed into a syntax tree, of which only literals are taken."""
    text = re.sub(r"range\((\d), ?(\d)\)", lambda found: str([*range(int(found[1]), int(found[2]))]), text)
    found = re.fullmatch(PRINTED, re.sub(r"#.*", "", text[:20000]).strip(), re.ASCII)
    _require(found, "expected Genotype(...) or OneShotGenotype(...) of literals, and nothing else")
    call = ast.parse(found[1], mode="eval").body
    fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return getattr(rome, call.func.id)(*map(ast.literal_eval, call.args), **fields)


def _from_json(text):
    schema, kind, value = map(json.loads(text).get, ("schema", "kind", "genotype"))
    _require(type(schema) is int and schema == SCHEMA, f"schema {schema!r:.80} is unknown; this reads {SCHEMA}")
    _require(kind in list(KINDS), f"kind {kind!r:.80} is unknown; known: {', '.join(KINDS)}")
    return value if kind == "nb201" else KINDS[kind](**value)


def _parse(text, space):
    text, readers = text.strip(), {"{": _from_json, "|": str}
    try:
        genotype = readers.get(text[:1], _from_python)(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not complete JSON: {error}") from None
    except (AttributeError, TypeError, SyntaxError, RecursionError, MemoryError):
        names = f"({', '.join(Genotype._fields)}) or ({', '.join(OneShotGenotype._fields)})"
        raise ValueError(f"not readable as a genotype: expected {names}, each once, as lists of literals") from None
    return check(genotype, space)


def load(source, space=None):
    """The genotype of a published name, a file, or JSON or printed text; else a ValueError. space: as for `check`."""
    _require(isinstance(source, (str, os.PathLike)), f"expected a name, a path or text, not {source!r:.80}")
    if source in PUBLISHED:
        return check(PUBLISHED[source], space)
    if isinstance(source, str) and re.search(r"^\s*[{|]|Genotype\s*\(", source):
        return _parse(source, space)
    try:
        known = f"no published cell ({', '.join(PUBLISHED)}) and no file; a run's cell is in RUN/genotype.json"
        _require(os.path.isfile(source), known)
        return _parse(Path(source).read_text("utf-8-sig"), space)
    except (OSError, ValueError) as error:
        raise ValueError(f"{os.fspath(source)!r:.100}: {error}") from None


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
    value = genotype if isinstance(genotype, str) else genotype._asdict()
    data = dict(schema=SCHEMA, kind=_kind(genotype), genotype=value, **extra)
    lines = [f'  "{key}": {json.dumps(value, allow_nan=False)}' for key, value in data.items()]
    write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _ops(nodes):
    return [on for _, on, _ in nodes] + [op for _, _, edges in nodes for op, _ in edges]


def parameter_free(genotype):
    """Per cell type, how many operations have no parameters; of the normal cell, this is the paper's Num."""
    return {cell: sum(op in PARAMETER_FREE for op in _ops(nodes)) for cell, nodes in _graph(check(genotype)).items()}


def describe(genotype):
    """The genotype as text, one line per node."""
    lines, free = [], parameter_free(genotype)
    for cell, nodes in _graph(check(genotype)).items():
        lines.append(f"{cell}, parameter-free ops: {free[cell]}")
        for name, on, edges in nodes:
            terms = [f"{op}({nodes[i][0]})" if op else nodes[i][0] for op, i in edges]
            terms = (", " if name == "c_k" else " + ").join(terms)
            if edges:
                lines.append(f"  {name} = {on}({terms})" if on else f"  {name} = {terms}")
    return "\n".join(lines)


_BLUE, _GREEN, _INK, _PAPER, _GREY = "#2563a8", "#1b7a5e", "#22272e", "#fcfcfa", "#7c838c"  # grey: any other op
_COLOUR = dict(sep=_BLUE, nor=_BLUE, con=_BLUE, dil="#6f42ab", max=_GREEN, avg=_GREEN, ski="#b35a06", noi="#b0304f")


def _layout(genotype):
    """Width, height, lines (colour, points) and boxes (x, y, width, height, fill, ink, text), in pixels.

    Every edge has a row of its own, left of its node. It starts at a dot on the line that runs down from its input.
    """
    graph, free, lines, boxes, y = _graph(check(genotype)), parameter_free(genotype), [], [], 0
    pill = 22 + int(7.2 * max(len(op) for nodes in graph.values() for op in _ops(nodes)))  # width of an operation
    for cell, nodes in graph.items():
        title = f"{cell}, parameter-free ops: {free[cell]}"
        boxes.append((22 + 3.6 * len(title), y + 22, 0, 0, _PAPER, _INK, title))
        x, y, places = -16, y + 62, []  # places: x and y of the nodes
        for name, on, edges in nodes:
            output = name == "c_k"
            x += pill + 98 if edges and not output else 60
            rows = [y if output else y + 30 * k for k in range(len(edges))] or [y]
            middle, joint = sum(rows) / len(rows), x - 34  # the rows meet at x = joint, y = middle
            ops = [(row, op) for row, (op, _) in zip(rows, edges) if op]
            if on and not output:  # behind the joint
                joint, ops = joint - 14 - pill, [(middle, on)]
            for row, (op, i) in zip(rows, edges):
                left, above = places[i]
                lines.append((_GREY, [(left, above), (left, row)]))
                lines.append((_COLOUR.get(op[:3], _GREY), [(left, row), (joint, row), (joint, middle)]))
                boxes.append((left, row, 7, 7, _GREY, _GREY, ""))
            for row, op in ops:
                boxes.append((x - 40 - pill / 2, row, pill, 24, _COLOUR.get(op[:3], _GREY), _PAPER, op))
            lines += [(_GREY, [(joint, middle), (x, middle)])] if edges else []
            boxes.append((x, middle, 44, 34, _INK, _PAPER, name))
            places.append((x, middle))
            y = y if name == "c_k-2" else rows[-1] + 42  # the two inputs of a DARTS cell stand side by side
    return x + 44, y, lines, boxes


def _svg(width, height, lines, boxes):
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="font: 12px monospace; text-anchor: middle">']
    parts.append(f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>')
    for colour, points in lines:
        points = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.4"/>')
    for x, y, w, h, fill, ink, text in boxes:
        parts.append(f'<rect x="{x - w / 2}" y="{y - h / 2}" width="{w}" height="{h}" rx="{h / 2}" fill="{fill}"/>')
        parts.append(f'<text x="{x}" y="{y + 4}" fill="{ink}">{html.escape(text)}</text>')
    return "\n".join([*parts, "</svg>\n"]).encode()


def _png(width, height, lines, boxes):
    try:
        from matplotlib import figure, patches
    except ImportError:
        raise ValueError("a .png needs matplotlib: pip install matplotlib; an .svg needs nothing") from None
    canvas, buffer = figure.Figure((width / 72, height / 72), dpi=144, facecolor=_PAPER), io.BytesIO()
    axes = canvas.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), frame_on=False)
    for colour, points in lines:
        axes.plot(*zip(*points), color=colour, linewidth=2.4)
    for x, y, w, h, fill, ink, text in boxes:
        axes.add_patch(patches.Rectangle((x - w / 2, y - h / 2), w, h, color=fill, zorder=3))
        axes.text(x, y + 4, text, color=ink, ha="center", size=12, family="monospace", zorder=4)
    canvas.savefig(buffer)
    return buffer.getvalue()


def draw(genotype, path):
    """Draw the cells into an .svg file, or a .png one through matplotlib; ValueError for another suffix."""
    paint = {".svg": _svg, ".png": _png}.get(Path(path).suffix.lower())
    _require(paint, f"{os.fspath(path)!r:.100}: the name of a picture ends in .svg or .png")
    write(path, paint(*_layout(genotype)))
