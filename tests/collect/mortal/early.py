from haversack.collect._stages import Stage
from mortal import dying

STAGE = Stage("mortal-early", "1", dying("early", 0))
