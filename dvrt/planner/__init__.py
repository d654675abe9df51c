"""What to buy and how to split it: Equations 1 to 6, profiles, and the plan made of both.

Pure: numbers in, plans out. ``plan`` is the planner, ``public`` the answers of the public one.
"""

from __future__ import annotations

from dvrt.planner.explain import explain as explain
from dvrt.planner.judge import SloTargets as SloTargets
from dvrt.planner.launch_line import launch_line as launch_line
from dvrt.planner.plan import Plan as Plan
from dvrt.planner.plan import PlanInput as PlanInput
from dvrt.planner.plan import make_plan as make_plan
from dvrt.planner.profile import Profile as Profile
from dvrt.planner.profile import open_profile as open_profile
from dvrt.planner.workload import Workload as Workload
from dvrt.planner.workload import open_workload as open_workload
