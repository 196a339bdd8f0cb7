#include "model/peft_adapter.h"
