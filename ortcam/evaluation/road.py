ROAD = {}
