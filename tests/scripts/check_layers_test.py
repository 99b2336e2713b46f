"""Tests of scripts/check_layers, run over small trees that each test writes."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECK_LAYERS = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_layers"


def check(files):
    """Runs check_layers over a source tree given as {path: text}; returns (exit code, standard output)."""
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            file = pathlib.Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        run = subprocess.run(
            [sys.executable, CHECK_LAYERS, folder], capture_output=True, text=True, timeout=60, check=False
        )
        return run.returncode, run.stdout.replace(f"{folder}/", "")


class CheckLayersTest(unittest.TestCase):
    def test_allowed_includes_pass(self):
        allowed = {
            "its own folder": ("kv/cache.cpp", '#include "kv/cache.h"'),
            "its own subfolder": ("kernels/norm/norm.cpp", '#include "kernels/matmul/matmul.h"'),
            "a lower layer": ("engine/engine.cpp", '#include "base/error.h"'),
            "a system header": ("base/error.h", "#include <server/http.h>"),
            "an include in a comment": ("base/error.h", '// #include "server/http.h"'),
        }
        for name, (path, text) in allowed.items():
            with self.subTest(name):
                self.assertEqual(check({path: text}), (0, ""))

    def test_wrong_includes_fail_with_file_and_line(self):
        wrong = {
            "a higher layer": ("base/error.h", '"server/http.h"', "base (level 0) is below server (level 7)"),
            "a neighbour of the same level": ("kv/cache.h", '"moe/router.h"', "must not know each other"),
            "a path relative to the file": ("kv/cache.cpp", '"cache.h"', "from the source root"),
            "a climbing path": ("kv/cache.cpp", '"../base/error.h"', "from the source root"),
            "an unknown folder": ("kv/cache.cpp", '"util/strings.h"', "'util' is not a layer"),
            "a higher layer with spaces": ("moe/router.cpp", '"models/model.h"', "moe (level 4) is below models"),
        }
        for name, (path, included, message) in wrong.items():
            with self.subTest(name):
                code, output = check({path: f"#pragma once\n\n  #  include {included}\n"})
                self.assertEqual(code, 1)
                self.assertIn(f"{path}:3: includes {included} ", output)
                self.assertIn(message, output)

    def test_every_wrong_include_is_listed(self):
        code, output = check(
            {"base/a.h": '#include "kv/a.h"\n#include "moe/b.h"\n', "text/b.cpp": '#include "memory/m.h"\n'}
        )
        self.assertEqual(code, 1)
        self.assertEqual(len(output.splitlines()), 3)

    def test_a_folder_without_a_place_in_the_order_fails(self):
        code, output = check({"helpers/a.h": "#pragma once\n"})
        self.assertEqual(code, 1)
        self.assertIn("src/helpers is not a layer", output)


if __name__ == "__main__":
    unittest.main()
