
BlogitsJ(¼=ÀmÇjÀqÀƒÀr€·À0–SAõùÐÀIÑÀ¨Ö¾HìoÀü›'À