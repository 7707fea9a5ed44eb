from haversack.collect._stages import Stage
from mortal import dying

STAGE = Stage("mortal-late", "1", dying("late", 4))
