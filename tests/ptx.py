"""PTX, as NVIDIA documents it, on NumPy: what a GPU does with a kernel, without one.

Numba's simulator runs the source of a kernel; this runs what a compiler made of it, with the layouts of a GPU, and what
stands in assembly. An instruction is done for all threads of some blocks at once, so every register is an array.
Threads that have gone different ways take turns, those behind the others first, and meet again.

It knows the instructions that our kernels have, and says which one it does not know when it comes to it.
"""

import re
from types import CodeType
from typing import NamedTuple

import numpy as np

WARP = 32
# What ends a part of a kernel: threads may wait there for others, or go on elsewhere.
JUMP, BRANCH, END, FOR_WARP, FOR_BLOCK, FOR_CLUSTER = range(6)
WAITS = {"bar.warp.sync": FOR_WARP, "bar.sync": FOR_BLOCK, "barrier.cluster.wait": FOR_CLUSTER}

DTYPES = {"pred": "?", "b16": "u2", "b32": "u4", "b64": "u8"}
DTYPES |= {f"{kind}{8 * size}": f"{code}{size}" for kind, code in zip("usf", "uif", strict=True) for size in (2, 4, 8)}
SPECIAL = ("tid.x", "ntid.x", "ctaid.x", "nctaid.x", "cluster_ctarank", "cluster_nctarank", "dynamic_smem_size")
# Where the driver puts what: shared memory of a block begins behind what the system takes, generic addresses of it and
# those of constants are far from each other and from everything else.
SHARED_START, GENERIC_SHARED, CONSTANTS = 1 << 10, 1 << 60, 1 << 61
RANK_SHIFT = 24  # of shared addresses: which block of a cluster they are in, from Hopper on also of the thread's own


def unknown(instruction):
    """Return what is said of an instruction that is not known here."""
    return f"{instruction}: tests/ptx.py does not know it; add it there, and a case to tests/test_ptx.py"


def known(condition, code):
    """Refuse a form of an instruction that is not known here."""
    if not condition:
        raise NotImplementedError(unknown(code))


class Instruction(NamedTuple):
    """An instruction; ``guard`` is the predicate that it is done under, with its sign, or None."""

    guard: str | None
    code: str
    operands: tuple
    text: str


class Part(NamedTuple):
    """Instructions without a way in between; then ``end``, one of the above, and the number of the part it names."""

    instructions: list
    end: int
    guard: str | None
    target: int


class Program:
    """A kernel, read from its PTX.

    Attributes
    ----------
    threads, cluster : int
        Threads of a block, and blocks of a cluster.
    parameters : list of (str, str, int)
        Names, types, and places among the bytes of all of them, aligned as in C.
    registers : dict
        dtypes of registers, by name.
    symbols : dict
        Addresses of what has a name: in shared memory, or constants.
    shared : int
        Bytes of shared memory that the kernel asks for by itself.
    constants : bytes
        What begins at address CONSTANTS.
    parts : list of Part
    """

    def __init__(self, ptx, name):
        ptx = re.sub(r"//.*", "", ptx)
        head = re.search(rf"\.visible \.entry {name}\((.*?)\)(.*?)\{{(.*?)^\}}", ptx, re.DOTALL | re.MULTILINE)
        parameters, settings, body = head.groups()
        self.name = name
        self.threads = int(re.search(r"\.maxntid (\d+)", settings)[1])
        self.cluster = int((re.search(r"\.reqnctapercluster (\d+)", settings) or (0, 1))[1])
        self._read_parameters(parameters)
        self._read_memory(ptx[: ptx.index(".visible .entry")] + body)
        self.registers = {}
        self._read_body(body)
        self._codes = {}

    def code(self, part):
        """Return the `Code` of a part."""
        if part not in self._codes:
            self._codes[part] = Translator(self).code(part)
        return self._codes[part]

    def _read_parameters(self, text):
        self.parameters, place = [], 0
        for kind, name in re.findall(r"\.param \.(\w+)[^,]*?(\w+)\s*(?:,|$)", text):
            size = np.dtype(DTYPES[kind]).itemsize
            place = -(-place // size) * size
            self.parameters.append((name, DTYPES[kind], place))
            place += size

    def _read_memory(self, text):
        self.symbols, self.shared, self.constants = {}, 0, b""
        for outer, alignment, name, size, values in re.findall(
            r"(\.extern )?\.(?:shared|global) \.align (\d+) \.b8 (\w+)\[(\d*)\](?: = \{([\d, ]*)\})?;", text
        ):
            alignment = int(alignment)
            if values:
                self.constants += b"\0" * (-len(self.constants) % alignment)
                self.symbols[name] = CONSTANTS + len(self.constants)
                self.constants += bytes(map(int, values.split(",")))
            elif not outer:
                self.shared = -(-self.shared // alignment) * alignment
                self.symbols[name] = SHARED_START + self.shared
                self.shared += int(size)
        for name in re.findall(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\]", text):  # behind all others
            self.symbols[name] = SHARED_START + -(-self.shared // 16) * 16

    def _read_body(self, body):
        pieces, labels = [[]], {}  # instructions, the last of which may be a way
        for text in re.split(r";|(?<=:)\s", body):
            text = re.sub(r"^[{}\s]+", "", text).strip()
            if declared := re.match(r"\.reg \.(\w+)\s+(.*)", text):
                self._declare(*declared.groups())
            elif text.endswith(":"):
                if pieces[-1]:
                    pieces.append([])
                labels[text[:-1]] = len(pieces) - 1
            elif text and text[0] != ".":
                instruction = _instruction(text)
                pieces[-1].append(instruction)
                if instruction.code.startswith(("bra", "ret", *WAITS)):
                    pieces.append([])
        self.parts = [_part(i, piece, labels) for i, piece in enumerate(pieces)]

    def _declare(self, kind, names):
        for name in names.split(","):
            base, _, count = name.strip().rstrip(">").partition("<")
            every = [f"{base}{i}" for i in range(int(count))] if count else [base]
            self.registers |= dict.fromkeys(every, DTYPES[kind])


def _instruction(text):
    guard, code, operands = re.match(r"(?:@(!?%?\w+)\s+)?(\S+)\s*(.*)", text, re.DOTALL).groups()
    found = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^\s,]+", operands)
    return Instruction(guard, code, tuple(found), " ".join(text.split()))


def _part(number, instructions, labels):
    code = instructions[-1].code if instructions else ""
    if code.startswith("bra"):
        *others, last = instructions
        target = labels[last.operands[0]]
        return Part(others, BRANCH if last.guard else JUMP, last.guard, target)
    for instruction in instructions:
        if instruction.code.startswith(("ret", *WAITS)):
            assert instruction.guard is None, instruction.text
            assert instruction.operands in ((), ("0",), ("-1",)), instruction.text  # all of the block, or of the warp
    assert not any(instruction.code.startswith("barrier.cluster.arrive") for instruction in instructions[:-2])
    if code == "ret":
        return Part(instructions[:-1], END, None, -1)
    if wait := next((wait for name, wait in WAITS.items() if code.startswith(name)), None):
        return Part(instructions[:-1], wait, None, number + 1)
    return Part(instructions, JUMP if instructions else END, None, number + 1)


# The instructions, as Python that does them for all threads at once; M says for which of them, and may be True.

FUNCTIONS = {  # of all operands, whatever their type
    "add": "add", "add.rn": "add", "sub": "subtract", "mul": "multiply", "mul.lo": "multiply", "mul.rn": "multiply",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "invert", "shl": "left_shift",
    "shr": "right_shift", "neg": "negative", "abs": "absolute", "min": "fmin", "max": "fmax", "max.NaN": "maximum",
    "min.NaN": "minimum", "sqrt.rn": "sqrt", "fma.rn": "fused", "div.rn": "divide", "rem": "fmod",
}  # fmt: skip
COMPARED = {
    "eq": "{a} == {b}", "ne": "({a} < {b}) | ({a} > {b})", "lt": "{a} < {b}", "le": "{a} <= {b}", "gt": "{a} > {b}",
    "ge": "{a} >= {b}", "equ": "~(({a} < {b}) | ({a} > {b}))", "neu": "{a} != {b}", "ltu": "~({a} >= {b})",
    "leu": "~({a} > {b})", "gtu": "~({a} <= {b})", "geu": "~({a} < {b})", "nan": "({a} != {a}) | ({b} != {b})",
    "num": "({a} == {a}) & ({b} == {b})",
}  # fmt: skip


class Code(NamedTuple):
    """A part as Python.

    Its variables are registers, ``r1_f4`` for register %r1 seen as float32, whose names and dtypes ``registers`` has;
    numbers, in ``numbers``; special registers with _ for the dot; parameters of the kernel; and the functions that are
    called. ``decides`` is the register that says which threads go elsewhere, if one does.
    """

    compiled: CodeType
    registers: dict
    numbers: dict
    decides: str | None


class Translator:
    """Makes Python of the parts of a program.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program):
        self.program = program
        self._registers, self._numbers = {}, {}
        self._fenced = False  # whether the next product of warpgroups sees what registers hold

    def code(self, number):
        """Return the `Code` of a part."""
        self._registers, self._numbers, self._fenced = {}, {}, False
        part, lines = self.program.parts[number], []
        for instruction in part.instructions:
            if instruction.guard is None:
                lines += self._lines(instruction)
            else:
                sign = "~" if instruction.guard[0] == "!" else ""
                lines += [f"G, M = M, M & {sign}{self._register(instruction.guard.lstrip('!'), '?')}", "if np.any(M):"]
                lines += [*(f" {line}" for line in self._lines(instruction)), "M = G"]
        decides = self._register(part.guard.lstrip("!"), "?") if part.guard else None
        compiled = compile("\n".join(lines), f"{self.program.name}, part {number}", "exec")
        return Code(compiled, self._registers, self._numbers, decides)

    def _register(self, name, dtype):
        """Return the variable of a register, seen as a dtype."""
        own = self.program.registers[name]
        assert np.dtype(own).itemsize == np.dtype(dtype).itemsize, f"{name} is a register of {own}, not {dtype}"
        variable = f"{name.lstrip('%')}_{dtype.replace('?', 'p')}"
        self._registers[variable] = name, dtype
        return variable

    def _value(self, operand, dtype):
        """Return what stands for an operand: a register, a number, or an address."""
        if operand in self.program.registers:
            own = self.program.registers[operand]
            same = np.dtype(own).itemsize == np.dtype(dtype).itemsize
            # Of a wider register, an instruction takes the lower bits.
            return self._register(operand, dtype) if same else f"{self._register(operand, own)}.astype('{dtype}')"
        if operand.startswith("%"):
            name = operand[1:].replace(".", "_")
            assert operand[1:] in SPECIAL, f"there is no register {operand}"
            return f"{name}.astype('{dtype}')"
        if operand in self.program.symbols:
            return self._symbol(operand, dtype)
        if operand[:2] == "0f":
            number = np.array(int(operand[2:], 16), "u4").view("f4" if dtype[0] == "f" else dtype)
        elif operand[:2] == "0d":
            number = np.array(int(operand[2:], 16), "u8").view("f8" if dtype[0] == "f" else dtype)
        else:
            number = np.array(int(operand.rstrip("U"), 0) & (1 << 64) - 1, "u8").astype(dtype)
        return self._number(number.astype(dtype)[()])

    def _symbol(self, name, dtype, offset=0):
        """Return the address of what has a name; in shared memory, with the block of the cluster that it is in."""
        address = self.program.symbols[name]
        number = self._number(np.array(address + offset, dtype)[()])
        if self.program.cluster == 1 or address >= CONSTANTS:
            return number
        return f"({number} + (cluster_ctarank.astype('{dtype}') << {RANK_SHIFT}))"

    def _number(self, number):
        variable = f"number_{number.dtype.str[1:]}_{number.tobytes().hex()}"
        self._numbers[variable] = number
        return variable

    def _address(self, operand):
        """Return what stands for an address in brackets, as int64."""
        base, _, offset = operand.strip("[] ").partition("+")
        if base in self.program.symbols:
            return self._symbol(base, "i8", int(offset or 0))
        value = self._value(base, self.program.registers[base].replace("u8", "i8"))
        if self.program.registers[base] == "u4":
            value = f"{value}.astype('i8')"
        return f"{value} + {int(offset)}" if offset else value

    def _lines(self, instruction):
        name, _, kind = instruction.code.rpartition(".")
        operands = instruction.operands
        if name == "div":
            return self._quotient(kind, *operands)
        if name == "mul.wide":
            return self._wide_product(kind, *operands)
        if own := getattr(self, "_" + re.split(r"\W", instruction.code)[0], None):
            return own(instruction.code, *operands)
        if name in FUNCTIONS and kind in DTYPES:
            dtype = DTYPES[kind]
            target, *sources = operands
            values = [self._value(source, dtype) for source in sources]
            if name in ("shl", "shr"):  # by so many bits, of 32
                values[1] = f"asarray({self._value(sources[1], 'u4')}).astype('{dtype}')"
            return [f"{FUNCTIONS[name]}({', '.join(values)}, out={self._register(target, dtype)}, where=M)"]
        return [f"raise NotImplementedError({unknown(instruction.text)!r})"]

    def _put(self, target, dtype, value):
        return [f"copyto({self._register(target, dtype)}, {value}, where=M, casting='unsafe')"]

    def _mov(self, code, target, source):
        dtype = DTYPES[code.rpartition(".")[2]]
        if target[0] == "{":  # halves, the lower first
            half = f"u{int(dtype[1]) // 2}"
            pair = f"{self._value(source, dtype.replace('f', 'u'))}.view('{half}')"
            names = target.strip("{}").split(",")
            return [line for i, own in enumerate(names) for line in self._put(own.strip(), half, f"{pair}[{i}::2]")]
        if source[0] == "{":
            half = f"u{int(dtype[1]) // 2}"
            halves = [self._value(own.strip(), half) for own in source.strip("{}").split(",")]
            return self._put(target, dtype.replace("f", "u"), f"joined({', '.join(halves)})")
        return self._put(target, dtype, self._value(source, dtype))

    def _cvta(self, code, target, source):
        shift = {"cvta.shared.u64": GENERIC_SHARED, "cvta.to.shared.u64": -GENERIC_SHARED}.get(code, 0)
        return self._put(target, "u8", f"asarray({self._value(source, 'u8')}).view('i8') + {shift}")

    def _setp(self, code, target, a, b):
        _, how, kind = code.split(".")
        a, b = (self._value(operand, DTYPES[kind]) for operand in (a, b))
        if how == "ne" and kind[0] != "f":
            how = "neu"
        return self._put(target, "?", COMPARED[how].format(a=a, b=b))

    def _selp(self, code, target, a, b, which):
        dtype = DTYPES[code.split(".")[1]]
        a, b = (self._value(operand, dtype) for operand in (a, b))
        return self._put(target, dtype, f"np.where({self._register(which, '?')}, {a}, {b})")

    def _cvt(self, code, target, *sources):
        *how, to, of = code.split(".")[1:]
        known(how in ([], ["rn"], ["rni"], ["rna"]), code)
        if to == "bf16x2":
            upper, lower = (self._value(source, "f4") for source in sources)
            return self._put(target, "u4", f"bf16({upper}) << 16 | bf16({lower})")
        if to == "tf32":
            return self._put(target, "u4", f"tf32({self._value(sources[0], 'f4')})")
        value = self._value(sources[0], DTYPES[of])
        if how == ["rni"]:
            value = f"np.rint({value})"
        dtype = DTYPES[to]
        wide = self.program.registers[target]
        if np.dtype(wide).itemsize != np.dtype(dtype).itemsize:
            value, dtype = f"asarray({value}).astype('{dtype}')", wide
        return self._put(target, dtype, f"asarray({value}).astype('{dtype}')")

    def _mad(self, code, target, a, b, c):
        dtype = DTYPES[code.rpartition(".")[2]]
        known(code.startswith("mad.lo."), code)
        a, b, c = (self._value(operand, dtype) for operand in (a, b, c))
        return self._put(target, dtype, f"{a} * {b} + {c}")

    def _wide_product(self, kind, target, a, b):
        narrow, wide = DTYPES[kind], DTYPES[kind].replace("4", "8")
        a, b = (f"asarray({self._value(operand, narrow)}).astype('{wide}')" for operand in (a, b))
        return self._put(target, wide, f"{a} * {b}")

    def _quotient(self, kind, target, a, b):
        a, b = (self._value(operand, DTYPES[kind]) for operand in (a, b))
        return self._put(target, DTYPES[kind], f"quotient({a}, {b})")

    def _rcp(self, code, target, a):
        dtype = DTYPES[code.rpartition(".")[2]]
        value = f"1 / {self._value(a, dtype)}"
        if "approx" in code:  # of float64, the upper half
            return self._put(target, "u8", f"({value}).view('u8') >> 32 << 32")
        return self._put(target, dtype, value)

    def _shf(self, code, target, low, high, count):
        known(code == "shf.l.wrap.b32", code)
        low, high = (f"asarray({self._value(operand, 'u4')}).astype('u8')" for operand in (low, high))
        return self._put(target, "u4", f"(({high} << 32 | {low}) << ({self._value(count, 'u4')} & 31)) >> 32")

    def _prmt(self, code, target, a, b, which):
        known(code == "prmt.b32", code)
        a, b = (f"asarray({self._value(operand, 'u4')}).astype('u8')" for operand in (a, b))
        which = int(which.rstrip("U"), 0)
        chosen = [which >> 4 * i & 15 for i in range(4)]
        assert max(chosen) < 8, "signs are not spread"
        return [f"P = {b} << 32 | {a}", *self._put(
            target, "u4", " | ".join(f"(P >> {8 * byte} & 255) << {8 * i}" for i, byte in enumerate(chosen))
        )]  # fmt: skip

    def _dp2a(self, code, target, a, b, c):
        known(code == "dp2a.lo.u32.u32", code)
        a, b, c = (f"asarray({self._value(operand, 'u4')})" for operand in (a, b, c))
        return self._put(target, "u4", f"({a} & 65535) * ({b} & 255) + ({a} >> 16) * ({b} >> 8 & 255) + {c}")

    def _ld(self, code, target, source):
        _, *where, kind = code.split(".")
        dtype = DTYPES[kind]
        if where == ["param"]:
            if not any(source[1:-1] == name for name, _, _ in self.program.parameters):
                return [f"raise NotImplementedError({unknown(code)!r})"]  # of a function that is called
            return self._put(target, dtype, f"{source.strip('[]')}.astype('{dtype}')")
        wide = self.program.registers.get(target, dtype)
        if np.dtype(wide).itemsize != np.dtype(dtype).itemsize:  # a number goes to the lower bits, with its sign
            narrow = f"%narrow_{dtype}"
            self.program.registers[narrow] = dtype
            return [*self._ld(code, narrow, source), *self._put(target, wide, self._register(narrow, dtype))]
        targets = [self._register(own.strip(), dtype) for own in target.strip("{}").split(",")]
        memory = {"shared": "shared", "global": "memory"}.get(where[0])
        if memory is None and where[0] != "shared::cluster":
            return [f"raise NotImplementedError({unknown(code)!r})"]
        take = f"{memory or 'shared'}.load"
        return [f"{take}(M, {self._address(source)}, ({', '.join(targets)},))"]

    def _st(self, code, target, source):
        _, *where, kind = code.split(".")
        dtype = DTYPES[kind]
        memory = {"shared": "shared", "global": "memory"}.get(where[0])
        if memory is None:
            return [f"raise NotImplementedError({unknown(code)!r})"]
        sources = [self._value(own.strip(), dtype) for own in source.strip("{}").split(",")]
        return [f"{memory}.store(M, {self._address(target)}, ({', '.join(sources)},))"]

    def _mapa(self, code, target, source, rank):
        known(code == "mapa.shared::cluster.u32", code)
        source, rank = self._value(source, "u4"), self._value(rank, "u4")
        return self._put(target, "u4", f"{source} & {(1 << RANK_SHIFT) - 1} | {rank} << {RANK_SHIFT}")

    def _cp(self, code, *operands):
        if code == "cp.async.commit_group":
            return ["shared.end_copies(M)"]
        if code == "cp.async.wait_group":
            return [f"shared.wait_for_copies(M, {int(operands[0])})"]
        if code.startswith("cp.async.bulk."):
            how = "shared::cluster.global.mbarrier::complete_tx::bytes"
            target, source, size, barrier, *blocks = operands
            known(code == f"cp.async.bulk.{how}{'.multicast::cluster' if blocks else ''}", code)
            where = f"{self._address(target)}, memory, {self._address(source)}, {self._value(size, 'u4')}"
            blocks = self._value(blocks[0], "u2") if blocks else "1 << cluster_ctarank"  # as bits
            return [f"shared.copy_to_blocks(M, {where}, {self._address(barrier)}, {blocks})"]
        known(code == "cp.async.cg.shared.global", code)
        target, source, size, *read = operands
        assert size == "16", size
        read = self._value(read[0], "u4") if read else "16"
        return [f"shared.copy(M, {self._address(target)}, memory, {self._address(source)}, {read})"]

    def _mma(self, code, target, a, b, c):
        kind = code.split(".")[-2]
        d, c = ([self._register(own.strip(), "f4") for own in group.strip("{}").split(",")] for group in (target, c))
        a, b = ([self._register(own.strip(), "u4") for own in group.strip("{}").split(",")] for group in (a, b))
        every = ", ".join(f"({', '.join(group)})" for group in (d, a, b, c))
        return [f"{kind}_product(M, {every})"]

    def _wgmma(self, code, *operands):
        _, what, *_, kind = code.split(".")
        if what == "fence":
            self._fenced = True
            return []
        if what == "commit_group":
            self._fenced = False
            return ["shared.end_products(M)"]
        if what == "wait_group":
            return [f"shared.wait_for_products(M, {int(operands[0])})"]
        d, a, descriptor, *settings = operands
        expected = {"tf32": ["1", "1", "1"], "bf16": ["1", "1", "1", "0"]}[kind]  # d is added to, nothing is turned
        known((what, settings) == ("mma_async", expected), code)
        assert self._fenced, "a product without a fence for registers before"
        d = [self._register(own.strip(), "f4") for own in d.strip("{}").split(",")]
        a = [self._register(own.strip(), "u4") for own in a.strip("{}").split(",")]
        known(f"n{2 * len(d)}k" in code, code)
        b = f"shared.factor(M, {self._value(descriptor, 'u8')}, {2 * len(d)})"
        a = f"({', '.join(a)})"
        return [f"shared.lend(M, {a})", f"{kind}_product_of_warpgroups(M, ({', '.join(d)}), {a}, {b})"]

    def _fence(self, code):
        if code == "fence.mbarrier_init.release.cluster":
            return ["shared.announce_barriers(M)"]
        known(code == "fence.proxy.async.shared::cta", code)
        return ["shared.fence(M)"]

    def _mbarrier(self, code, *operands):
        if code == "mbarrier.init.shared::cta.b64":
            place, count = operands
            return [f"shared.make_barrier(M, {self._address(place)}, {int(count)})"]
        if code == "mbarrier.arrive.expect_tx.shared::cta.b64":
            _, place, count = operands
            return [f"shared.expect(M, {self._address(place)}, {self._value(count, 'u4')})"]
        known(code == "mbarrier.try_wait.parity.shared::cta.b64", code)
        target, place, phase = operands
        value = f"shared.have_arrived(M, {self._address(place)}, {self._value(phase, 'u4')})"
        return self._put(target, "?", value)

    def _barrier(self, code):
        known(code in ("barrier.cluster.arrive.release", "barrier.cluster.arrive.relaxed.aligned"), code)
        return []  # the wait comes next, as `_part` has seen
