"""
Cells as data: published ones by name; read, check, write, describe and draw any; choose at random.

A genotype is a rome.Genotype (DARTS), an extra.nasbench.OneShotGenotype (NAS-Bench-1Shot1), or the
string of NAS-Bench-201. Equal cells compare equal after `check`. Text is parsed, never run.

1 Checks   2 Random cells   3 Reading   4 Published cells   5 Writing   6 Description and picture
"""

import ast
import html
import io
import json
import os
import re
import sys
from contextlib import suppress
from numbers import Integral
from pathlib import Path

import torch

import rome
from rome import Genotype

KINDS = {"Genotype": "darts", "OneShotGenotype": "1shot1", "str": "nb201"}  # type -> in files
SCHEMA = 1  # version of the JSON files
# An operation of a user's own counts as one with parameters unless it is added here.
PARAMETER_FREE = {
    "skip_connect", "max_pool_3x3", "avg_pool_3x3", "noise", "skip-connect", "maxpool3x3"
}  # fmt: skip

# --------------------------------------------------------------------------------------------------
# 1. Checks


RULE = (
    "expected one cell, as a JSON file of this project, NAS-Bench-201's |op~0|+|op~0|op~1|+..., or "
    "Genotype(normal=[('op', input), ...], normal_concat=[2, ...], reduce=[...], "
    "reduce_concat=[...]) with plain numbers, two pairs for each node, all in one list: where each "
    "node has a list, join them, as docs/examples.md does for pt.darts"
)


def require(condition, message: str):
    if not condition:
        raise ValueError(message)


def module_of(space):
    """rome, or extra.nasbench for its own spaces. ValueError for a name that neither has."""
    if not isinstance(space, str) or space in rome.SPACES:
        return rome
    from extra import nasbench

    known = [*rome.SPACES, *nasbench.SPACES]
    require(space in known, f"no space {space!r:.80}; there are {', '.join(known)}")
    return nasbench


def small_net(space):
    """A supernet that knows the cells of a space. Its weights are not used."""
    with torch.device("cpu"), torch.random.fork_rng([]):  # whatever the user's default device
        return module_of(space).Supernet(space, 2, 1, 1)


def check(genotype, space=None):
    """The genotype in canonical form. ValueError says what is wrong with it.

    space: a name, or a table as in rome.SPACES. Without it any operation may stand anywhere.
    """
    if isinstance(genotype, Genotype):
        module, genotype = rome, check_darts(genotype)
    else:
        from extra import nasbench as module

        choice = module.read(genotype)
        inputs = [list(map(integer, node)) for node in choice.inputs]
        genotype = module.write(choice._replace(inputs=inputs))
    if space is None or (space == "nb201" and isinstance(genotype, str)):  # of any number of edges
        return genotype
    require(module_of(space) is module, f"a cell of another kind than those of {space!r:.80}")
    small_net(space).architecture(genotype)
    return genotype


def cells_of(genotype: Genotype):
    return [("normal", *genotype[:2]), ("reduce", *genotype[2:])]


def check_darts(genotype: Genotype) -> Genotype:
    count, cells = max(1, len(genotype.normal) // 2), []
    for kind, pairs, concat in cells_of(genotype):
        try:
            pairs = [(str(op), integer(i)) for op, i in pairs]
            concat = sorted(map(integer, concat))
        except (TypeError, ValueError):
            raise ValueError(RULE) from None
        nodes = len(rome.nodes_of(pairs))
        require(nodes == count, f"{kind}: expected {count} nodes, not {nodes}")
        for number, (op, _) in enumerate(pairs):
            require(
                op in rome.PRIMITIVES,
                f"{kind}, x_{number // 2 + 2}: unknown {op!r:.80}, known operations: "
                f"{', '.join(rome.PRIMITIVES)}",
            )
        require(
            concat and concat == sorted({*concat} & {*range(2, count + 2)}),
            f"{kind}, c_k: expected different nodes from 2 to {count + 1}, not {concat!r:.80}",
        )
        cells += [pairs, concat]
    return Genotype(*cells)


def integer(value) -> int:
    """Python's int, also of numpy's integers. A bool is none."""
    require(isinstance(value, Integral) and type(value) is not bool, RULE)
    return int(value)


# --------------------------------------------------------------------------------------------------
# 2. Random cells


def random_cell(space, generator: torch.Generator | None = None):
    """A cell of a space, each with the same probability: alpha and beta are 0.

    Without a generator it is drawn from torch's own.
    """
    net = small_net(space)
    for p in net.architecture_parameters():
        torch.nn.init.zeros_(p)
    return net.cell(net.sample(1.0, generator))


# --------------------------------------------------------------------------------------------------
# 3. Reading


def load(source, space=None):
    """The genotype of a published name, a file, or JSON or printed text. space: as for `check`.

    ValueError in one line for everything else.
    """
    try:
        if source in PUBLISHED:
            return check(PUBLISHED[source], space)
        text = os.fspath(source)
        if not re.search(r"^\s*[{|]|Genotype\s*\(", text):
            text = text_of(text)
        return check(parse(text), space)
    except (OSError, ValueError) as error:
        reason = error
    except (AttributeError, MemoryError, RecursionError, SyntaxError, TypeError):
        reason = RULE
    raise ValueError(f"{str(source)!r:.100} cannot be used as a genotype: {str(reason):.500}")


def open_text(path, mode: str = "r"):
    """A text file in UTF-8, whatever the locale; line ends stay as they are.

    What is no UTF-8 becomes an escape such as \\xff, so that neither reading nor writing fails.
    """
    return open(path, mode, encoding="utf-8", errors="backslashreplace", newline="")


def text_of(path):
    known = f"no published cell ({', '.join(PUBLISHED)}) and no file"
    require(os.path.isfile(path), f"{known}; a run's cell is in RUN/genotype.json")
    with open_text(path) as file:
        return file.read(1 << 20).lstrip("\ufeff")  # the mark that Windows may put before a text


def space_of(path) -> str | None:
    """The "space" that the JSON file of a genotype names. None without such a file or entry."""
    with suppress(KeyError, OSError, RecursionError, TypeError, ValueError):
        space = json.loads(text_of(path))["space"]
        return space if isinstance(space, str) else None


def parse(text: str):
    """The genotype in a text, unchecked: JSON, NAS-Bench-201's string, or printed text."""
    text = text.strip()
    if text.startswith("|"):
        return text
    try:
        return from_json(text) if text.startswith("{") else from_python(text)
    except ValueError:
        raise ValueError(RULE) from None


def from_json(text: str):
    data = json.loads(text)
    schema, kind, value = map(data.get, ("schema", "kind", "genotype"))
    require(schema == SCHEMA, RULE)
    return value if kind == "nb201" else class_of(kind != "darts")(**value)


def from_python(text: str):
    """The genotype in printed text, [NAME =] [module.]Genotype(...). Only literals are read."""
    text = re.sub(r"#.*", "", text[:20000])
    text = re.sub(r"^[^(]*?(?=(OneShot)?Genotype)", "", text, count=1)
    text = re.sub(r"range\(2, ?6\)", "[2, 3, 4, 5]", text)  # of DARTS
    text = re.sub(r"\b\w+\.u?int\d+\((\d+)\)", r"\1", text)  # of numpy 2
    call = ast.parse(text, mode="eval").body
    named = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    return class_of(call.func.id != "Genotype")(*map(ast.literal_eval, call.args), **named)


def class_of(one_shot):
    if not one_shot:
        return Genotype
    from extra import nasbench

    return nasbench.OneShotGenotype


# --------------------------------------------------------------------------------------------------
# 4. Published cells, from the authors' code: quark0/darts, yuhuixu1993/PC-DARTS (found on CIFAR-10,
# on ImageNet), chenxin061/pdarts, D-X-Y/GDAS

PRINTED = """
DARTS_V1 = Genotype(
    normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0),
        ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)],
    reduce_concat=[2, 3, 4, 5])

DARTS_V2 = Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
        ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=[2, 3, 4, 5])

PC_DARTS_cifar = Genotype(
    normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)],
    reduce_concat=[2, 3, 4, 5])

PC_DARTS_image = Genotype(
    normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 2), ('max_pool_3x3', 1),
        ('sep_conv_3x3', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 3)],
    reduce_concat=[2, 3, 4, 5])

PDARTS = Genotype(
    normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2),
        ('max_pool_3x3', 0), ('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)],
    reduce_concat=[2, 3, 4, 5])

GDAS_V1 = Genotype(
    normal=[('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 0), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 3), ('skip_connect', 0), ('sep_conv_5x5', 4), ('sep_conv_3x3', 3)],
    normal_concat=[2, 3, 4, 5],
    reduce=[('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('sep_conv_5x5', 2), ('sep_conv_5x5', 1),
        ('dil_conv_5x5', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_5x5', 1)],
    reduce_concat=[2, 3, 4, 5])
"""
PUBLISHED = {text.split()[0]: from_python(text) for text in PRINTED.split("\n\n")}

# --------------------------------------------------------------------------------------------------
# 5. Writing


def write(path, data: bytes):
    """Writes under another name, then renames: a reader sees the old file or the new one."""
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
    """Writes a genotype as JSON, with `extra`, any JSON values. Errors leave the file as it was."""
    genotype = check(genotype)
    kind = KINDS[type(genotype).__name__]
    value = genotype if kind == "nb201" else genotype._asdict()
    data = dict(schema=SCHEMA, kind=kind, genotype=value, **extra)
    text = json.dumps(data, allow_nan=False).replace(', "', ',\n "')  # a line per entry
    write(path, f"{text}\n".encode())


# --------------------------------------------------------------------------------------------------
# 6. Description and picture


def graph_of(genotype):
    """Cell type -> its nodes, inputs first, output last.

    A node is (name, operations, inputs): an operation for each input, in 1Shot1 one for their sum,
    and none in c_k, which concatenates.
    """
    genotype, graph = check(genotype), {}
    if isinstance(genotype, Genotype):
        for kind, pairs, concat in cells_of(genotype):
            nodes = graph[kind] = [("c_k-2", (), ()), ("c_k-1", (), ())]
            for pair in zip(pairs[::2], pairs[1::2]):
                nodes.append((f"x_{len(nodes)}", *zip(*pair)))
            nodes.append(("c_k", (), concat))
        return graph
    nodes = graph["cell"] = [("x_0", (), ())]
    if isinstance(genotype, str):
        for text in genotype.split("+"):
            names = re.findall(r"(\w+)~", text)
            inputs = [i for i, op in enumerate(names) if op != "none"]
            nodes.append((f"x_{len(nodes)}", [names[i] for i in inputs], inputs))
        return graph
    for op, inputs in zip(genotype.ops, genotype.inputs):  # but for the inputs of the output
        nodes.append((f"x_{len(nodes)}", [op], inputs))
    nodes.append(("c_k", (), genotype.inputs[-1]))
    return graph


def used(nodes):
    """The numbers of the nodes from which a way leads to the output, the last node."""
    found = {len(nodes) - 1}
    for number in reversed(range(len(nodes))):
        if number in found:
            found.update(nodes[number][2])
    return found


def free_ops(nodes):
    """How many operations have no parameters, of the nodes with a way to the output."""
    return sum(op in PARAMETER_FREE for number in used(nodes) for op in nodes[number][1])


def parameter_free(genotype) -> dict:
    """Cell type -> how many operations have no parameters: of the normal cell the paper's Num."""
    return {kind: free_ops(nodes) for kind, nodes in graph_of(genotype).items()}


def describe(genotype) -> str:
    """The genotype as text, one line per node."""
    lines = []
    for kind, nodes in graph_of(genotype).items():
        lines.append(f"{kind}, parameter-free ops: {free_ops(nodes)}")
        for name, ops, inputs in nodes:
            terms = [nodes[i][0] for i in inputs]
            if len(ops) == len(terms):
                text = " + ".join(f"{op}({term})" for op, term in zip(ops, terms))
            elif ops:
                text = f"{ops[0]}({' + '.join(terms)})"
            else:
                text = f"concat({', '.join(terms)})"
            if text:
                lines.append(f"  {name} = {text}")
    return "\n".join(lines)


def draw(genotype, path):
    """Draws the cells into an .svg file, or through matplotlib into a .png. Else ValueError."""
    paint = {".svg": svg, ".png": png}.get(Path(path).suffix.lower())
    require(paint, f"{os.fspath(path)!r:.100}: the name of a picture ends in .svg or .png")
    write(path, paint(*layout(genotype)))


INK, PAPER, GREY = "#22272e", "#fcfcfa", "#7c838c"
LEGEND = {"parameters": "#2563a8", "pool": "#1b7a5e", "skip, noise": "#b35a06", "unused": GREY}


def layout(genotype):
    """Width, height and shapes, in pixels, and in the order in which they are drawn.

    A shape is a line with round ends: (thickness, colour, points, text). A thick one is the box of
    a text, which stands at its first point. Every operation has a row, left of its node. An edge
    starts at a dot on the line that runs down from its input.
    """
    graph, shapes, y = graph_of(genotype), [], 0

    def box(x, y, width, thickness, colour, text=""):
        shapes.append((thickness, colour, [(x, y), (x - width / 2, y), (x + width / 2, y)], text))

    for kind, nodes in graph.items():
        title = f"{kind}, parameter-free ops: {free_ops(nodes)}"
        box(36 + 3.6 * len(title), y + 22, 7.2 * len(title), 24, GREY, title)
        x, y, places = -16, y + 62, []  # places: x and y of the nodes
        for number, (name, ops, inputs) in enumerate(nodes):
            alive = number in used(nodes)
            length = 7.2 * max(map(len, ops), default=0)
            x += length + 120 if ops else 60
            step = 30 if len(ops) == len(inputs) else 0
            rows = [y + step * k for k in range(len(inputs))] or [y]
            middle, joint = sum(rows) / len(rows), x - 34  # the rows meet at x = joint, y = middle
            for row, i in zip(rows, inputs):
                left, above = places[i]
                points = [(left, above), (left, row), (joint, row), (joint, middle), (x, middle)]
                shapes.append((2.4, GREY, points, ""))
                box(left, row, 1, 6, GREY)
            for row, op in zip(rows, ops):
                kind = "skip, noise" if op in PARAMETER_FREE else "parameters"
                kind = "unused" if not alive else "pool" if "pool" in op else kind
                box(x - 51 - length / 2, row, length, 24, LEGEND[kind], op)
            places.append((x, middle))
            box(x, middle, 10, 34, INK if alive else GREY, name)
            y = y if name == "c_k-2" else rows[-1] + 42  # DARTS's two inputs stand side by side
    for number, (text, colour) in enumerate(LEGEND.items()):
        box(70 + 130 * number, y + 14, 80, 24, colour, text)
    return max(x + 44, 540), y + 40, sorted(shapes)


def svg(width, height, shapes):
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = "font: 12px monospace; text-anchor: middle; fill: none; stroke-linecap: round"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    for thickness, colour, points, text in shapes:
        line = " ".join(f"{x},{y}" for x, y in points)
        stroke = f'stroke="{colour}" stroke-width="{thickness}" stroke-linejoin="round"'
        x, y = points[0]
        parts += [
            f'<polyline points="{line}" {stroke}/>',
            f'<text x="{x}" y="{y + 4}" fill="{PAPER}">{html.escape(text)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"]).encode()


def png(width, height, shapes):
    picture, file = figure((width / 72, height / 72), dpi=144), io.BytesIO()
    axes = picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), frame_on=False)
    for thickness, colour, points, text in shapes:
        axes.plot(*zip(*points), color=colour, linewidth=thickness, solid_capstyle="round")
        axes.text(
            *points[0], text, color=PAPER, size=12, family="monospace", ha="center", va="center"
        )
    picture.savefig(file)
    return file.getvalue()


def figure(size, **settings):
    """matplotlib's Figure, whatever backend MPLBACKEND names: a file needs none.

    matplotlib stops at a backend that is not installed, such as that of a notebook elsewhere.
    """
    if "matplotlib" not in sys.modules:
        backend = os.environ.pop("MPLBACKEND", "")
        import matplotlib

        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    from matplotlib.figure import Figure

    return Figure(size, **settings)
