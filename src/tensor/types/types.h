#pragma once

#include "tensor/quant_type.h"

// One function per format, defined in the file of its name: its row of the table in quant_type.cpp.
namespace witan {

QuantType f32_type();
QuantType f16_type();
QuantType bf16_type();
QuantType f8_e4m3_type();
QuantType q8_0_type();
QuantType q4_0_type();
QuantType q4_1_type();
QuantType q5_0_type();
QuantType q5_1_type();
QuantType q2_k_type();
QuantType q3_k_type();
QuantType q4_k_type();
QuantType q5_k_type();
QuantType q6_k_type();
QuantType iq4_nl_type();
QuantType iq4_xs_type();
QuantType mxfp4_type();

}  // namespace witan
