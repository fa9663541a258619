"""Immutable named tuples without the start-up cost of `typing` or `dataclasses`: what results are made of."""

from __future__ import annotations

from functools import partial

_MANY = 256  # records of a class, before a constructor is compiled for it

TYPE_CHECKING = False  # `typing` costs a third of the start-up time of a short command
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self, dataclass_transform

    class Values:
        """What a type checker sees of the tuple underneath (a field may be called `index`)."""

        def __iter__(self) -> Iterator[Any]: ...
        def __len__(self) -> int: ...
        def __getitem__(self, key: str) -> Any: ...

    def item(position: int, doc: str | None) -> Any:
        """The descriptor that reads one place of the tuple underneath."""
else:
    try:
        from _collections import _tuplegetter as item  # namedtuple's own: four times as fast as a call of __getitem__
    except ImportError:

        def item(position, doc):
            return property(lambda self: tuple.__getitem__(self, position), doc=doc)

    def dataclass_transform(**_):
        return lambda cls: cls

    class Values(tuple):
        """A tuple with names: equal by class and content, items by name or by position."""

        __slots__ = ()

        def __getitem__(self, key):
            return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)

        def __eq__(self, other):
            return type(self) is type(other) and tuple.__eq__(self, other)

        def __ne__(self, other):
            return not self == other

        def __hash__(self):
            return hash((type(self), tuple(self)))

        def __setattr__(self, name, value):
            # a subclass without __slots__ has a __dict__ that would take it
            raise AttributeError(f"{type(self).__name__} does not change: {name} goes into a new value, by replace()")


@dataclass_transform(frozen_default=True)
class Record(Values):
    """A frozen record: the annotations of a subclass are its fields, in order, with defaults as assigned."""

    if not TYPE_CHECKING:
        __slots__ = ()
        _names = ()
        _defaults = {}

        def __init_subclass__(cls):
            cls._names = tuple(name for name in cls.__annotations__ if not name.startswith("_"))
            cls._defaults = {name: vars(cls)[name] for name in cls._names if name in vars(cls)}
            cls._ending = tuple(cls._defaults.values())  # of the last fields, as in any signature
            cls._made = 0
            for position, name in enumerate(cls._names):
                setattr(cls, name, item(position, None))

        def __new__(cls, *args, **kwargs):
            # a constructor of its own is faster, but to compile it costs as much as to make hundreds this way
            cls._made += 1
            missing = len(cls._names) - len(args)
            if cls._made < _MANY and not kwargs and 0 <= missing <= len(cls._ending):
                return tuple.__new__(cls, (*args, *cls._ending[len(cls._ending) - missing :]))
            rest = cls._names[len(args) :]
            if cls._made < _MANY and kwargs.keys() <= {*rest} <= kwargs.keys() | cls._defaults.keys():
                values = (*args, *[kwargs[name] if name in kwargs else cls._defaults[name] for name in rest])
                if len(values) == len(cls._names):
                    return tuple.__new__(cls, values)
            parameters = ", ".join(f"{n}=_d[{n!r}]" if n in cls._defaults else n for n in cls._names)
            source = f"def __new__(_cls, {parameters}): return _new(_cls, ({', '.join(cls._names)},))"
            scope = {"_new": tuple.__new__, "_d": cls._defaults}
            exec(source, scope)  # noqa: S102 - built from the class's own annotations
            cls.__new__ = staticmethod(scope["__new__"])
            return cls(*args, **kwargs)

        def __getnewargs__(self):
            return tuple(self)

    @classmethod
    def maker(cls) -> Callable[[tuple[Any, ...]], Self]:
        """What makes a record of a tuple of all its fields: twice as fast, for where very many are made."""
        return partial(tuple.__new__, cls)  # type: ignore[type-var]

    def asdict(self) -> dict[str, Any]:
        """Field names and values, in order."""
        return dict(zip(self._names, self, strict=True))  # type: ignore[attr-defined]

    def replace(self, **changes: Any) -> Self:
        """The same record with some fields changed."""
        values = tuple(map(changes.pop, self._names, self))  # type: ignore[attr-defined]
        if changes:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(changes)}")
        return tuple.__new__(type(self), values)  # type: ignore[type-var]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.asdict().items())})"
