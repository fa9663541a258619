"""Completion scripts for shells, from the parsers of the commands."""

from __future__ import annotations

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

FILES = ("CONFIG", "FILE", "IMAGE", "KERNEL", "OUT", "SMALL", "A", "B", "LIVE")  # how parsers call the name of a file


class Argument(Record):
    """An option, or a positional argument (without `flags`); `value` is "" for an option that takes none."""

    flags: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str

    @property
    def listed(self) -> str:
        """The choices of an option, unless its help says them, or they are many."""
        said = not self.flags or len(self.choices) >= 12 or not self.choices or self.choices[0] in self.help
        return "" if said else ", ".join(self.choices)


class Command(Record):
    """A command: its arguments, in the order of its help."""

    name: str
    summary: str
    description: str
    arguments: tuple[Argument, ...]

    @property
    def options(self) -> tuple[Argument, ...]:
        """Those with a name."""
        return tuple(argument for argument in self.arguments if argument.flags)

    @property
    def positional(self) -> tuple[Argument, ...]:
        """Those without."""
        return tuple(argument for argument in self.arguments if not argument.flags)


def command(name: str, summary: str, parser: argparse.ArgumentParser, words: Mapping[str, tuple[str, ...]]) -> Command:
    """What a parser says of a command; `words` are those that its checks know: metavar -> values."""
    arguments = []
    for action in parser._actions:
        choices = tuple(map(str, action.choices or ()))
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = "" if action.nargs == 0 else metavar
        help = "" if action.help is None else action.help.replace("%(default)s", str(action.default))
        arguments.append(Argument(tuple(action.option_strings), value, choices or words.get(value, ()), help))
    return Command(name, summary, parser.description or "", tuple(arguments))


def bash(commands: Sequence[Command]) -> Iterator[str]:
    """A function for `complete`; where it has nothing to offer, bash offers files."""
    yield "# bash completion of x86tables"
    yield "_x86tables() {"
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words="
    yield "    [[ $word == = ]] && word="
    yield "    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD - 2]}"
    yield "    if ((COMP_CWORD == 1)); then"
    yield f'        words="{" ".join(one.name for one in commands)}"'
    yield "    else"
    yield '        case "${COMP_WORDS[1]} $before" in'
    for one in commands:
        for option in one.options:
            if option.value:
                patterns = " | ".join(f'"{one.name} {flag}"' for flag in option.flags)
                yield f'            {patterns}) words="{" ".join(option.choices)}" ;;'
    yield "            *)"
    yield "                if [[ $word == -* ]]; then"
    yield '                    case "${COMP_WORDS[1]}" in'
    for one in commands:
        flags = " ".join(flag for option in one.options for flag in option.flags)
        yield f'                        {one.name}) words="{flags}" ;;'
    yield "                    esac"
    yield "                else"
    yield '                    case "${COMP_WORDS[1]}" in'
    for one in commands:
        if chosen := [choice for argument in one.positional for choice in argument.choices]:
            yield f'                        {one.name}) words="{" ".join(chosen)}" ;;'
    yield "                    esac"
    yield "                fi ;;"
    yield "        esac"
    yield "    fi"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")'
    yield "}"
    yield "complete -o default -F _x86tables x86tables"


def zsh(commands: Sequence[Command]) -> Iterator[str]:
    """A function for `_arguments`, to be found in fpath as `_x86tables`."""
    yield "#compdef x86tables"
    yield "_x86tables() {"
    yield "    local -a commands=("
    yield from (f"        {_quoted(f'{one.name}:{one.summary}')}" for one in commands)
    yield "    )"
    yield "    if ((CURRENT == 2)); then"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    shift words"
    yield "    ((CURRENT--))"
    yield "    case $words[1] in"
    for one in commands:
        yield f"        {one.name})"
        yield "            _arguments \\"
        for argument in one.arguments:
            value = f":{_plain(argument.value)}:{_action(argument)}" if argument.value else ""
            for flag in argument.flags or ("",):
                spec = f"*{flag}[{_plain(argument.help)}]{value}" if flag else f"*{value}"
                yield f"                {_quoted(spec)} \\"
        yield "                ;;"
    yield "    esac"
    yield "}"
    yield 'if [[ $funcstack[1] == _x86tables ]]; then _x86tables "$@"; else compdef _x86tables x86tables; fi'


def _action(argument: Argument) -> str:
    """What zsh offers for a value."""
    words = " ".join(argument.choices).replace("#", "\\#")
    return f"({words})" if words else "_files" if _file(argument) else " "


def _plain(text: str) -> str:
    """Text inside of zsh's specification of an argument."""
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return text


def fish(commands: Sequence[Command]) -> Iterator[str]:
    """One `complete` for each command and each option."""
    yield "# fish completion of x86tables"
    for one in commands:
        yield f"complete -c x86tables -n __fish_use_subcommand -f -a {one.name} -d {_quoted(one.summary)}"
    for one in commands:
        head = f"complete -c x86tables -n '__fish_seen_subcommand_from {one.name}'"
        for argument in one.arguments:
            flags = "".join(f" -l {flag[2:]}" if flag[:2] == "--" else f" -s {flag[1:]}" for flag in argument.flags)
            if argument.choices:
                values = f"{' -x' if flags else ' -f'} -a {_quoted(' '.join(argument.choices))}"
            else:
                values = "" if not argument.value or not flags else " -r -F" if _file(argument) else " -x"
            if flags or values:
                yield f"{head}{flags}{values} -d {_quoted(argument.help)}"


def _file(argument: Argument) -> bool:
    return argument.value.partition("@")[0].rstrip(".") in FILES


def _quoted(text: str) -> str:
    """A word in single quotes, for zsh and fish."""
    return "'" + text.replace("'", "'\\''") + "'"
