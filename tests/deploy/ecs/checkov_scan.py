"""Checkov over a folder of templates, printed as JSON; run by the Python of `.venv/checkov`, which `make peers` makes.

It pins an AWS library that ours cannot stand beside, hence the environment of its own. Only its CloudFormation part is
imported, which halves the time of its command.
"""

import json
import logging
import sys

from checkov.cloudformation.runner import Runner
from checkov.runner_filter import RunnerFilter


def main() -> None:
    logging.disable(logging.CRITICAL)
    report = Runner().run(root_folder=sys.argv[1], runner_filter=RunnerFilter(framework=["cloudformation"]))
    print(
        json.dumps(
            {
                "passed": len(report.passed_checks),
                "failed": [f"{each.check_id} {each.file_path} {each.resource}" for each in report.failed_checks],
                "skipped": [
                    [each.check_id, each.resource, each.check_result.get("suppress_comment", "")]
                    for each in report.skipped_checks
                ],
                "unreadable": [str(each) for each in report.parsing_errors],
            }
        )
    )


if __name__ == "__main__":
    main()
