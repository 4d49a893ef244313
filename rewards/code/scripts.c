/* What runs inside the sandbox around a candidate. None of it is trusted afterwards but the driver
 * and what prepares tests, which never meet a candidate's code: they see what it says as plain
 * values. No imports where a process per test pays for them. */
#include "rewards/code/code.h"

/* clang-format off */
#define CODEC \
    "def enc(x, out, depth=0):\n" \
    "    if depth > 60:\n" \
    "        raise ValueError(\"too deep\")\n" \
    "    t = type(x)\n" \
    "    if x is None:\n" \
    "        out.append(b\"N\")\n" \
    "    elif t is bool:\n" \
    "        out.append(b\"T\" if x else b\"F\")\n" \
    "    elif t is int:\n" \
    "        out.append(b\"i%s;\" % format(x, \"x\").encode())\n" \
    "    elif t is float:\n" \
    "        out.append(b\"f%s;\" % x.hex().encode())\n" \
    "    elif t is complex:\n" \
    "        out.append(b\"c%s,%s;\" % (x.real.hex().encode(), x.imag.hex().encode()))\n" \
    "    elif t is str:\n" \
    "        b = x.encode(\"utf-8\", \"surrogatepass\")\n" \
    "        out.append(b\"s%d:\" % len(b))\n" \
    "        out.append(b)\n" \
    "    elif t is bytes:\n" \
    "        out.append(b\"b%d:\" % len(x))\n" \
    "        out.append(x)\n" \
    "    elif t is list or t is tuple:\n" \
    "        out.append(b\"%s%d:\" % (b\"l\" if t is list else b\"t\", len(x)))\n" \
    "        for y in x:\n" \
    "            enc(y, out, depth + 1)\n" \
    "    elif t is set or t is frozenset:\n" \
    "        out.append(b\"S%d:\" % len(x))\n" \
    "        for y in x:\n" \
    "            enc(y, out, depth + 1)\n" \
    "    elif t is dict or t.__module__ == \"collections\" and issubclass(t, dict):\n" \
    "        out.append(b\"d%d:\" % len(x))\n" \
    "        for k, v in dict.items(x):\n" \
    "            enc(k, out, depth + 1)\n" \
    "            enc(v, out, depth + 1)\n" \
    "    else:\n" \
    "        raise TypeError(\"a value of type \" + t.__name__)\n" \
    "\n" \
    "def encoded(x):\n" \
    "    out = []\n" \
    "    enc(x, out)\n" \
    "    data = b\"\".join(out)\n" \
    "    if len(data) > 1 << 20:\n" \
    "        raise ValueError(\"too long\")\n" \
    "    return data\n" \
    "\n" \
    "def send(fd, data):\n" \
    "    while data:\n" \
    "        data = data[posix.write(fd, data):]\n" \
    "\n" \
    "def module(name):\n" \
    "    m = type(sys)(name)\n" \
    "    sys.modules[name] = m\n" \
    "    m.exit = m.quit = sys.exit\n" \
    "    return m.__dict__\n"

#define DECODER \
    "def dec(b, i=0, depth=0):\n" \
    "    if depth > 64:\n" \
    "        raise ValueError(\"too deep\")\n" \
    "    t = b[i:i + 1]\n" \
    "    i += 1\n" \
    "    if t in (b\"N\", b\"T\", b\"F\"):\n" \
    "        return {b\"N\": None, b\"T\": True, b\"F\": False}[t], i\n" \
    "    if t == b\"i\":\n" \
    "        j = b.index(b\";\", i)\n" \
    "        return int(b[i:j], 16), j + 1\n" \
    "    if t == b\"f\":\n" \
    "        j = b.index(b\";\", i)\n" \
    "        return float.fromhex(b[i:j].decode()), j + 1\n" \
    "    if t == b\"c\":\n" \
    "        j = b.index(b\";\", i)\n" \
    "        re, im = b[i:j].decode().split(\",\")\n" \
    "        return complex(float.fromhex(re), float.fromhex(im)), j + 1\n" \
    "    j = b.index(b\":\", i)\n" \
    "    n = int(b[i:j])\n" \
    "    i = j + 1\n" \
    "    if n < 0 or n > len(b) - i:\n" \
    "        raise ValueError(\"count\")\n" \
    "    if t == b\"s\":\n" \
    "        return b[i:i + n].decode(\"utf-8\", \"surrogatepass\"), i + n\n" \
    "    if t == b\"b\":\n" \
    "        return b[i:i + n], i + n\n" \
    "    items = []\n" \
    "    for _ in range(2 * n if t == b\"d\" else n):\n" \
    "        x, i = dec(b, i, depth + 1)\n" \
    "        items.append(x)\n" \
    "    if t == b\"l\":\n" \
    "        return items, i\n" \
    "    if t == b\"t\":\n" \
    "        return tuple(items), i\n" \
    "    if t == b\"S\":\n" \
    "        return set(items), i\n" \
    "    if t == b\"d\":\n" \
    "        return dict(zip(items[::2], items[1::2])), i\n" \
    "    raise ValueError(\"tag\")\n" \
    "\n" \
    "def whole(b):\n" \
    "    x, i = dec(b)\n" \
    "    if i != len(b):\n" \
    "        raise ValueError(\"left over\")\n" \
    "    return x\n"

const char code_script_unit[] =
    "import sys, posix\n"
    CODEC
    "def main():\n"
    "    nonce, n_code, n_setup, rest = sys.stdin.buffer.read().split(b\" \", 3)\n"
    "    n, m = int(n_code), int(n_code) + int(n_setup)\n"
    "    code, setup, call = rest[:n], rest[n:m], rest[m:]\n"
    "    try:\n"
    "        ns = module(\"solution\")\n"
    "        exec(compile(code, \"solution.py\", \"exec\"), ns)\n"
    "        if setup:\n"
    "            exec(compile(setup, \"setup.py\", \"exec\"), ns)\n"
    "        reply = b\"value \" + encoded(eval(compile(call, \"call.py\", \"eval\"), ns))\n"
    "    except BaseException as e:\n"
    "        reply = b\"raised \" + type(e).__name__.encode(\"utf-8\", \"replace\")[:100]\n"
    "    send(3, nonce + b\" \" + reply)\n"
    "    posix._exit(0)\n"
    "main()\n";

const char code_script_serve[] =
    "import sys, posix\n"
    CODEC
    DECODER
    "def main():\n"
    "    feed = sys.stdin.buffer\n"
    "    entry = sys.argv[1]\n"
    "    fail = None\n"
    "    try:\n"
    "        ns = module(\"solution\")\n"
    "        with open(\"solution.py\", \"rb\") as f:\n"
    "            exec(compile(f.read(), \"solution.py\", \"exec\"), ns)\n"
    "        function = ns[entry]\n"
    "    except BaseException as e:\n"
    "        fail = type(e).__name__\n"
    "    while True:\n"
    "        nonce, _, size = feed.readline(64).partition(b\" \")\n"
    "        if not size:\n"
    "            break\n"
    "        try:\n"
    "            args, kwargs = whole(feed.read(int(size)))\n"
    "            if fail:\n"
    "                raise RuntimeError(fail)\n"
    "            reply = b\"value \" + encoded(function(*args, **kwargs))\n"
    "        except BaseException as e:\n"
    "            reply = b\"raised \" + (fail or type(e).__name__).encode(\"utf-8\", \"replace\")[:100]\n"
    "        send(3, b\"%s %d\\n\" % (nonce, len(reply)) + reply)\n"
    "    posix._exit(0)\n"
    "main()\n";

const char code_script_driver[] =
    "import sys, posix, json\n"
    CODEC
    DECODER
    "def prompt_of(task):\n"
    "    text = task.get(\"prompt\") or \"\"\n"
    "    try:\n"
    "        return compile(text, \"prompt.py\", \"exec\")\n"
    "    except SyntaxError:  # ends with a head and no body\n"
    "        return compile(text + \"\\n    pass\\n\", \"prompt.py\", \"exec\")\n"
    "\n"
    "def imported(text, ns):\n"
    "    # data sets lean on what the candidate imports\n"
    "    for name in sys.stdlib_module_names:\n"
    "        if name + \".\" in text and name not in ns:\n"
    "            try:\n"
    "                ns[name] = __import__(name)\n"
    "            except ImportError:\n"
    "                pass\n"
    "\n"
    "class Raised(BaseException):\n"
    "    pass\n"
    "class Dead(BaseException):\n"
    "    pass\n"
    "class NotPlain(BaseException):\n"
    "    pass\n"
    "asked = 0\n"
    "\n"
    "def ask(*args, **kwargs):\n"
    "    global asked\n"
    "    try:\n"
    "        data = encoded((args, kwargs))\n"
    "    except (TypeError, ValueError):\n"
    "        raise NotPlain()\n"
    "    asked += 1\n"
    "    nonce = posix.urandom(8).hex().encode()\n"
    "    try:\n"
    "        send(4, b\"%s %d\\n\" % (nonce, len(data)) + data)\n"
    "    except OSError:\n"
    "        raise Dead()\n"
    "    got, _, size = sys.stdin.buffer.readline(64).partition(b\" \")\n"
    "    if got != nonce or not size.strip().isdigit() or int(size) > 1 << 20:\n"
    "        raise Dead()\n"
    "    reply = sys.stdin.buffer.read(int(size))\n"
    "    if len(reply) != int(size):\n"
    "        raise Dead()\n"
    "    kind, _, value = reply.partition(b\" \")\n"
    "    if kind == b\"raised\":\n"
    "        raise Raised(value.decode(\"utf-8\", \"replace\"))\n"
    "    try:\n"
    "        return whole(value)\n"
    "    except Exception:\n"
    "        raise Dead()\n"
    "\n"
    "def main():\n"
    "    with open(\"task.json\") as f:\n"
    "        task = json.load(f)\n"
    "    entry = sys.argv[2]\n"
    "    try:\n"
    "        ns = module(\"task\")\n"
    "        imported(task.get(\"check\") or task[\"tests\"][int(sys.argv[1])], ns)\n"
    "        exec(prompt_of(task), ns)\n"
    "        exec(compile(task.get(\"setup\") or \"\", \"setup.py\", \"exec\"), ns)\n"
    "        ns[entry] = ask\n"
    "        ns[\"candidate\"] = ask\n"
    "        if task.get(\"check\"):\n"
    "            code = compile(task[\"check\"] + \"\\n\\ncheck(candidate)\\n\", \"check.py\", \"exec\")\n"
    "        else:\n"
    "            code = compile(task[\"tests\"][int(sys.argv[1])], \"test.py\", \"exec\")\n"
    "    except BaseException as e:\n"
    "        return \"bad \" + type(e).__name__ + \": \" + str(e)[:200]\n"
    "    try:\n"
    "        exec(code, ns)\n"
    "    except AssertionError:\n"
    "        return \"wrong\" if asked else \"bad the test fails before it calls the function\"\n"
    "    except Raised as e:\n"
    "        return \"raised \" + str(e)\n"
    "    except Dead:\n"
    "        return \"dead\"\n"
    "    except NotPlain:\n"
    "        return \"wrong\" if asked else \"bad an argument is no plain value\"\n"
    "    except BaseException as e:\n"
    "        return \"wrong\" if asked else \"bad \" + type(e).__name__ + \": \" + str(e)[:200]\n"
    "    return \"ok\" if asked else \"bad the test never calls the function\"\n"
    "send(3, main().encode(\"utf-8\", \"replace\"))\n"
    "posix._exit(0)\n";

const char code_script_prepare[] =
    "import sys, posix, json, ast, builtins\n"
    CODEC
    "def prompt_of(task):\n"
    "    text = task.get(\"prompt\") or \"\"\n"
    "    try:\n"
    "        return compile(text, \"prompt.py\", \"exec\")\n"
    "    except SyntaxError:  # ends with a head and no body\n"
    "        return compile(text + \"\\n    pass\\n\", \"prompt.py\", \"exec\")\n"
    "\n"
    "def imported(text, ns):\n"
    "    # data sets lean on what the candidate imports\n"
    "    for name in sys.stdlib_module_names:\n"
    "        if name + \".\" in text and name not in ns:\n"
    "            try:\n"
    "                ns[name] = __import__(name)\n"
    "            except ImportError:\n"
    "                pass\n"
    "\n"
    "KEEP = {\"list\", \"tuple\", \"set\", \"sorted\", \"frozenset\", \"dict\"}\n"
    "\n"
    "def entry_of(task):\n"
    "    if task.get(\"entry\"):\n"
    "        return task[\"entry\"]\n"
    "    for text in task[\"tests\"]:\n"
    "        for node in ast.walk(ast.parse(text.strip())):\n"
    "            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) \\\n"
    "                    and not hasattr(builtins, node.func.id):\n"
    "                return node.func.id\n"
    "    for node in ast.walk(ast.parse(task[\"tests\"][0].strip())):\n"
    "        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):\n"
    "            return node.func.id\n"
    "    raise ValueError(\"no test calls a function\")\n"
    "\n"
    "def is_call(node, names):\n"
    "    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):\n"
    "        return False\n"
    "    if node.func.id in names:\n"
    "        return True\n"
    "    return node.func.id in KEEP and len(node.args) == 1 and not node.keywords \\\n"
    "        and is_call(node.args[0], names)\n"
    "\n"
    "def is_free(node, names):\n"
    "    return not any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))\n"
    "\n"
    "def split(test, names, ns):\n"
    "    expect = None\n"
    "    if isinstance(test, ast.Compare) and len(test.ops) == 1 \\\n"
    "            and isinstance(test.ops[0], (ast.Eq, ast.Is)):\n"
    "        call, right = test.left, test.comparators[0]\n"
    "        if not is_call(call, names):\n"
    "            call, right = right, call\n"
    "        if not is_call(call, names) or not is_free(right, names):\n"
    "            return None\n"
    "        if isinstance(test.ops[0], ast.Is) and not isinstance(right, ast.Constant):\n"
    "            return None\n"
    "        try:\n"
    "            value = eval(compile(ast.Expression(right), \"expect.py\", \"eval\"), dict(ns))\n"
    "            expect = encoded(value)\n"
    "        except Exception:\n"
    "            return None\n"
    "        return ast.unparse(call), expect\n"
    "    if is_call(test, names):\n"
    "        return \"bool(\" + ast.unparse(test) + \")\", encoded(True)\n"
    "    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) \\\n"
    "            and is_call(test.operand, names):\n"
    "        return \"bool(\" + ast.unparse(test.operand) + \")\", encoded(False)\n"
    "    return None\n"
    "\n"
    "class Rename(ast.NodeTransformer):\n"
    "    def __init__(self, to):\n"
    "        self.to = to\n"
    "    def visit_Name(self, node):\n"
    "        if node.id == \"candidate\":\n"
    "            node.id = self.to\n"
    "        return node\n"
    "\n"
    "def check_tests(text, entry, ns):\n"
    "    body = [n for n in ast.parse(text).body\n"
    "            if isinstance(n, ast.FunctionDef) and n.name == \"check\"][0].body\n"
    "    rows = []\n"
    "    for node in body:\n"
    "        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):\n"
    "            continue\n"
    "        if not isinstance(node, ast.Assert):\n"
    "            return None\n"
    "        if isinstance(node.test, ast.Constant) and node.test.value is True:\n"
    "            continue\n"
    "        row = split(Rename(entry).visit(node.test), {entry}, ns)\n"
    "        if row is None:\n"
    "            return None\n"
    "        rows.append(row)\n"
    "    return rows or None\n"
    "\n"
    "def main():\n"
    "    with open(\"task.json\") as f:\n"
    "        task = json.load(f)\n"
    "    entry = entry_of(task)\n"
    "    if not entry.isidentifier():\n"
    "        raise ValueError(\"entry is no name\")\n"
    "    ns = module(\"task\")\n"
    "    imported(task.get(\"check\") or \"\\n\".join(task[\"tests\"]), ns)\n"
    "    try:\n"
    "        exec(prompt_of(task), ns)\n"
    "        exec(compile(task.get(\"setup\") or \"\", \"setup.py\", \"exec\"), ns)\n"
    "    except Exception:\n"
    "        pass  # what needs the candidate's own definitions runs beside it\n"
    "    if task.get(\"check\"):\n"
    "        rows = check_tests(task[\"check\"], entry, ns)\n"
    "        if rows is None:\n"
    "            compile(task[\"check\"], \"check.py\", \"exec\")\n"
    "            return b\"check %s\\n\" % entry.encode()\n"
    "    else:\n"
    "        rows = []\n"
    "        for text in task[\"tests\"]:\n"
    "            body = ast.parse(text.strip()).body\n"
    "            row = None\n"
    "            if len(body) == 1 and isinstance(body[0], ast.Assert):\n"
    "                row = split(body[0].test, {entry}, ns)\n"
    "            rows.append(row or (\"\", b\"\"))\n"
    "    if not rows:\n"
    "        raise ValueError(\"no tests\")\n"
    "    out = [b\"calls %s %d\\n\" % (entry.encode(), len(rows))]\n"
    "    for call, expect in rows:\n"
    "        call = call.encode()\n"
    "        out.append(b\"%d %d\\n\" % (len(call), len(expect)) + call + expect)\n"
    "    return b\"\".join(out)\n"
    "\n"
    "try:\n"
    "    reply = main()\n"
    "except BaseException as e:\n"
    "    reply = b\"bad \" + (type(e).__name__ + \": \" + str(e)).encode(\"utf-8\", \"replace\")[:300]\n"
    "send(3, reply)\n"
    "posix._exit(0)\n";

/* clang-format on */
