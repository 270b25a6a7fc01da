
BlogitsJ(ёK@YП╠©g$каыTча
o·A╞╙Yа"н@Рув?#mЬю║KCа