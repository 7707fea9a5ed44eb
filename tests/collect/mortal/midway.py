from haversack.collect._stages import Stage
from mortal import dying

STAGE = Stage("mortal-midway", "1", dying("midway", 2))
