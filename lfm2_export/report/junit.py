"""JUnit XML for a CI server: a suite per runtime, a test per gate; a skipped gate is skipped with its reason."""

from __future__ import annotations

import re

from lfm2_export.parity.report import ParityReport

# what XML 1.0 cannot hold, however it is escaped
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parity_junit(report: ParityReport) -> str:
    """Return the report as JUnit XML. Needs junitparser."""
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    document = JUnitXml("lfm2-export parity")
    for runtime in report.runtimes:
        suite = TestSuite(text(f"{report.artifact}: {runtime.runtime}"))
        suite.add_property("recipe", text(report.recipe))
        suite.add_property("effort", report.effort)
        for name, version in report.versions.items():
            suite.add_property(text(name), text(version))
        for gate in runtime.gates:
            case = TestCase(text(gate.name), classname=text(f"{report.artifact}.{runtime.runtime}"))
            if gate.status == "skipped":
                case.result = [Skipped(text(gate.reason or "not measured"))]
            elif gate.status == "fail":
                why = f"measured {gate.value}, the limit is {gate.limit}"
                case.result = [Failure(text(f"{why}: {gate.reason}" if gate.reason else why))]
            suite.add_testcase(case)
        if not runtime.gates:
            case = TestCase("runtime", classname=text(f"{report.artifact}.{runtime.runtime}"))
            case.result = [Skipped(text(runtime.reason or "no gate was judged"))]
            suite.add_testcase(case)
        document.add_testsuite(suite)
    document.update_statistics()
    return str(document.tostring().decode("utf-8")) + "\n"


def text(value: str) -> str:
    """Return the text without what XML cannot hold."""
    return _FORBIDDEN.sub("�", value)
