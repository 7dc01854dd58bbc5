"""The XY-MD02 sensor of temperature and humidity on a Modbus line, its own or a board's."""

from typing import Final

from device_agent.events import BoardFault, BoardFaultEnded
from device_agent.hal.modbus_frames import Function, Request, read, registers, signed
from device_agent.hal.modbus_line import ModbusLine, Question

READ_EVERY_S: Final = 10.0
MISSES_MAX: Final = 5
GOOD_MIN: Final = 3
TEMPERATURES_C: Final = (-40.0, 80.0)
HUMIDITY_MAX_PCT: Final = 100.0
CODE: Final = "TEMP_SENSOR_FAULT"


def climate(temperature: int, humidity: int) -> tuple[float, float] | None:
    """Two registers, in tenths, as degrees and percent; None where no sensor can mean that."""
    temperature_c, humidity_pct = signed(temperature) / 10, humidity / 10
    lowest, highest = TEMPERATURES_C
    return (
        (temperature_c, humidity_pct)
        if lowest <= temperature_c <= highest and humidity_pct <= HUMIDITY_MAX_PCT
        else None
    )


class Xymd02:
    """Reads the sensor now and then; five failures running are a fault, three good readings end it."""

    def __init__(self, line: ModbusLine, slave: int, read_every_s: float = READ_EVERY_S) -> None:
        self._line, self._slave, self._read_every_s = line, slave, read_every_s
        self._question: Question | None = None
        self._due_s = 0.0
        self._misses = self._good = 0
        self._told = False
        self.reading: tuple[float, float] | None = None
        """Degrees and percent, while the sensor can be believed."""

    def request(self) -> Request:
        """The question to the sensor."""
        return read(self._slave, Function.READ_INPUT, 1, 2)

    @property
    def is_asking(self) -> bool:
        """Whether an answer is awaited."""
        return self._question is not None

    def advance(self, now_s: float) -> list[BoardFault | BoardFaultEnded]:
        """Ask when it is time and the line is free, take what has come; the line is advanced by its owner."""
        question = self._question
        if question is None:
            if now_s >= self._due_s and self._line.is_free:
                self._due_s = now_s + self._read_every_s
                self._question = self._line.ask(self.request())
            return []
        if not question.is_over:
            return []
        self._question = None
        return self._took(climate(*registers(question.answer)) if question.answer else None, question.failed)

    def _took(self, found: tuple[float, float] | None, failed: str) -> list[BoardFault | BoardFaultEnded]:
        if found is None:
            self._misses, self._good = self._misses + 1, 0
            if self._misses < MISSES_MAX:
                return []
            self.reading = None
            if self._told:
                return []
            self._told = True
            return [BoardFault(CODE, None, failed[:200] or "a reading that no sensor can mean")]
        self._misses, self._good, self.reading = 0, self._good + 1, found
        if not self._told or self._good < GOOD_MIN:
            return []
        self._told = False
        return [BoardFaultEnded(CODE)]
