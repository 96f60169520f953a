"""Runs killed at random moments and started again: `python -m benchmarks.kills [--kills 200] [--seed 0] [--only WORD]`.

Each job is run once undisturbed. Then it is started again and again, in a fresh folder, and killed with SIGKILL until
a start comes through; and again from a fresh folder, until the job has had its share of the kills. The moments are
drawn evenly over the time that the undisturbed run took or, of jobs named "writing", over what comes when the last
evaluation is done: half of them counted from its last line, half from when drafts of the results lie in the folder.
Jobs of several processes lose the main process alone, or all of them at once. Checked are

- after each kill: every file in the folder is whole (JSON, CSV, HTML, ONNX, caches, histograms), the journal has at
  most one half line, at its end, and begins with what it held before the kill; the workers of a main process that was
  killed end by themselves (half of the time the next start does not wait for that);
- after each start that came through: the same exit code, the same files to the byte (dates and durations aside), the
  same journal, no key in it twice, nothing left over; no process of any start is left; and of the evaluations no more
  were worked than the journal has, and one for each kill.

What differs ends the benchmark with an error that says where. The last lines are the figures.
"""
