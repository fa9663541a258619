"""Configurations that cost a TOML parser time, memory or its stack, or whose values do not end."""


def dotted(key: str, parts: int) -> str:
    return ".".join([key, *"a" * (parts - 1)])


TEXTS = {
    "digits": "[idt]\n8 = " + "9" * 5000,
    "hexadecimal-digits": "[idt]\n8 = 0x" + "f" * 9000,
    "long-key": dotted("idt", 2000) + " = 1",
    "longer-key": dotted("idt", 20000) + " = 1",
    "quoted-key": "a = 1\nidt" + ' . "a"' * 16 + " = 1",
    "long-header": "\n[" + dotted("idt", 2000) + "]",
    "long-inner-key": "idt = { " + dotted("a", 17) + " = 1 }",
    "arrays": "cpu = " + "[" * (1 << 19),
    "closed-arrays": "cpu = " + "[" * 17 + "]" * 17,
    "inline-tables": "cpu = " + "{a=" * 300 + "1" + "}" * 300,
    "open-string": 'a = "' + '\\"' * 400_000 + "\n",
    "long-value": 'tables.gates = "' + "a" * 900_000 + '"',
    "name-of-a-key": "a" * 900_000 + " = 1",
    "long-size": '[cpu]\nrsp0 = { bottom = "s", size = "' + "9" * 5000 + '" }',
    "octal-size": '[cpu]\nrsp0 = { bottom = "s", size = "0123" }',
    "long-vector": '[idt]\n"' + "1" * 5000 + '" = 1',
    "large-file": "#" * ((1 << 20) + 1),
}
LARGE = {f"{name}.toml": text.encode for name, text in TEXTS.items()}
